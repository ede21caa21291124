"""Sounds of the DX7, played by Dexed in this process: no plugin.

    python -m data_pipeline.render_shards --config=configs/render_dexed.py --output=data/dexed/shards \
        --shards=0-11 --samples_per_shard=10000 --seed=0 --prior=FOLDER

needs `pip install 'synthjax[dexed]'`. FOLDER has .syx files: rows are drawn as mixtures of their patches. Without
--prior they are drawn by the weights of the spec. Measured on two cores of an AMD EPYC: 37 accepted rows/s in
one process, 64 with 2 workers. Values: configs/render_surge_simple.py.
"""

import ml_collections

from synthjax.configs import render_surge_simple


def get_config() -> ml_collections.ConfigDict:
    """The settings of Surge Simple for the DX7."""
    c = render_surge_simple.get_config()
    c.synth = "dexed"
    c.spec = "dexed"
    return c
