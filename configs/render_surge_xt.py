"""Sounds of Surge XT with the parameters of Surge Full (300 columns): effects, modulation, all oscillator types.

    python -m data_pipeline.render_shards --config=configs/render_surge_xt.py --output=data/surge_xt/shards \
        --shards=0-11 --samples_per_shard=10000 --workers=16 --seed=0

needs the plugin: `make surge-xt`, or --plugin=PATH. Measured on two cores of an Intel Xeon with a local build of 1.3.4:
7.3 accepted rows/s with 1 worker, 13.6 with 2. Values: configs/render_surge_simple.py.
"""

import ml_collections

from synthjax.configs import render_surge_simple


def get_config() -> ml_collections.ConfigDict:
    """The settings of Surge Simple for the parameters of Surge Full."""
    c = render_surge_simple.get_config()
    c.spec = "surge_xt"
    return c
