"""Generator architectures, one file a family."""
