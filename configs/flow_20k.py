"""Conditional flow matching on the 20k-sample data set, 40 k steps.

    python -m synthjax.train --config=configs/flow_20k.py --workdir=runs/flow_20k --config.data.root=DATA

Made for one GPU or TPU. Time and scores: not measured. Variants combine: --config=configs/flow_20k.py:lr_high,tokens_64
(see synthjax/runs/variants.py). Values: configs/important.py.
"""

import ml_collections

from synthjax.configs import important
from synthjax.runs.variants import apply_variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The base model on 20k samples."""
    c = important.get_config()
    c.train.steps = 40_000
    return apply_variants(c, arg)
