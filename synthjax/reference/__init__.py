"""Checkpoints of the PyTorch code."""
