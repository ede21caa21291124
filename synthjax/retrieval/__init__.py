"""Index of known patches: building and search."""
