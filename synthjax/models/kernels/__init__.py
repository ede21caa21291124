"""Attention on each platform, and which results layers keep for their backward pass."""
