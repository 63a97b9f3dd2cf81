"""Training recipes for the bundled weights."""
