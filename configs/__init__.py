"""Experiments as ml_collections configs: one documented ``get_config(arg)`` a file.

They are imported as ``synthjax.configs``: the name ``configs`` is free for the user's own folder.
"""
