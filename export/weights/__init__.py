"""Bundled checkpoints, each a safetensors file with its recipe, data and measured PSNR in the header."""
