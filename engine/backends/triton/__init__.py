"""The Triton backend's parts: a graph lowered to a flat list of launches, its memory planned, and the list run."""
