"""The paper's flow on Surge Simple: 2 M sounds, 1 M steps.

    python -m synthjax.train --config=configs/flow_simple.py --workdir=runs/flow_simple --config.data.root=DATA

DATA is rendered with configs/render_surge_simple.py, 200 shards of 10,000. Made for GPUs or TPUs. Time and scores: not
measured. Variants: synthjax/runs/variants.py. Values: configs/important.py.
"""

import ml_collections

from synthjax.configs import important
from synthjax.runs.variants import apply_variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The base model with the paper's number of steps."""
    c = important.get_config()
    c.train.steps = 1_000_000
    c.train.eval_every = c.checkpoint.every = 10_000
    # The paper evaluates with 100 steps of RK4.
    c.sampling.steps = 100
    return apply_variants(c, arg)
