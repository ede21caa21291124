"""Grids of experiments, which synthjax.study runs."""
