"""The training loop and what it logs."""
