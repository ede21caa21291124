"""Conditional flow matching on the 100k-sample data set, 50 k steps.

    python -m synthjax.train --config=configs/flow_100k.py --workdir=runs/flow_100k --config.data.root=DATA

Made for one GPU or TPU. Time and scores: not measured.
Longer runs are the variants steps=500k and steps=1200k. Variants combine:
--config=configs/flow_100k.py:steps=500k,lr_low (see synthjax/runs/variants.py). Values: configs/important.py.
"""

import ml_collections

from synthjax.configs import important
from synthjax.runs.variants import VARIANTS, Overrides, apply_variants

LENGTHS: dict[str, Overrides] = {"steps=500k": {"train.steps": 500_000}, "steps=1200k": {"train.steps": 1_200_000}}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The base model on 100k samples."""
    c = important.get_config()
    c.train.steps = 50_000
    return apply_variants(c, arg, VARIANTS | LENGTHS)
