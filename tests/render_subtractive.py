"""Sounds of the built-in synthesizer, for tests that need no other package."""

import ml_collections

from synthjax.configs import render_surge_simple


def get_config() -> ml_collections.ConfigDict:
    """The settings of Surge Simple for the built-in synthesizer."""
    c = render_surge_simple.get_config()
    c.synth = "subtractive"
    c.spec = "subtractive"
    return c
