"""Measurements of speed: ``make bench`` at small size, ``make bench-full`` on an accelerator."""
