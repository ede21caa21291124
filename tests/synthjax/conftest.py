"""Eight CPU devices for every test of the accelerator stage, and the small config that many of them share."""

from __future__ import annotations

import jax
import ml_collections
import pytest

from configs import important

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def tiny_config() -> ml_collections.ConfigDict:
    """The base experiment with both networks shrunk to what a CPU runs in a moment, in float32."""
    config = important.get_config()
    config.compute_dtype = "float32"
    config.data.batch_size = 8
    config.model.encoder.update({"dim": 16, "layers": 2, "heads": 2, "patch": 32, "stride": 32})
    config.model.encoder.update({"cnn_channels": 4, "cnn_stages": 3, "cnn_blocks": 1})
    config.model.field.update({"dim": 16, "layers": 2, "heads": 2, "ff_dim": 32, "tokens": 8, "time_features": 8})
    return config
