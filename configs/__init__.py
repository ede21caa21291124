"""Experiments as ml_collections configs: one documented ``get_config(arg)`` a file."""
