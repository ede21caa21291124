"""Sounds of Surge XT with the parameters of Surge Full (300 columns): effects, modulation, all oscillator types.

    python -m data_pipeline.render_shards --config=configs/render_surge_xt.py --output=data/surge_xt/shards \
        --shards=0-11 --samples_per_shard=10000 --workers=16 --seed=0

needs the plugin: `make surge-xt`, or --plugin=PATH. Every value is explained in configs/render_surge_simple.py.
"""

import ml_collections

from configs import render_surge_simple


def get_config() -> ml_collections.ConfigDict:
    """Surge Simple's rules for Surge Full's parameters."""
    c = render_surge_simple.get_config()
    c.spec = "surge_xt"
    return c
