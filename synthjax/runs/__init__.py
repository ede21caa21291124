"""A run on disk: its config, its checkpoints, its model."""
