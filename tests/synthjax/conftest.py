"""Eight CPU devices for every test of the accelerator stage, and the small config that many of them share."""

from __future__ import annotations

import jax
import ml_collections
import pytest

from synthjax.configs import important
from tests.helpers import TINY

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def tiny_config() -> ml_collections.ConfigDict:
    """The base experiment with both networks shrunk to what a CPU runs in a moment, in float32."""
    config = important.get_config()
    config.update_from_flattened_dict(TINY)
    return config
