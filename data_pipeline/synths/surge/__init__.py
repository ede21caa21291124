"""Surge XT: its patches, presets and texts, and the plugin."""
