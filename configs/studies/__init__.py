"""Grids of experiments; see synthjax.study."""
