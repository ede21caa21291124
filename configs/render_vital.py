"""Sounds of Vital with the parameters of its core panel (313 columns): a data set with no plugin.

    python -m data_pipeline.render_shards --config=configs/render_vital.py --output=data/vital/shards \
        --shards=0-11 --samples_per_shard=1000 --seed=0

needs the package vita (GPL-3): pip install 'synthjax[vital]'. --preset=MINE.vital names a base patch of your own.
Measured on two cores of an AMD EPYC: 3.0 accepted rows/s in one process, 5.9 with 2 workers. Values:
configs/render_surge_simple.py.
"""

import ml_collections

from synthjax.configs import render_surge_simple


def get_config() -> ml_collections.ConfigDict:
    """The settings of Surge Simple for Vital."""
    c = render_surge_simple.get_config()
    c.synth = "vital"
    c.spec = "vital"
    return c
