"""The PyTorch side: generator architectures, checkpoints, training recipes."""
