"""The paper's flow on Surge Full: 2 M sounds, 1 M steps.

    python -m synthjax.train --config=configs/flow_full.py --workdir=runs/flow_full --config.data.root=DATA

DATA is rendered with configs/render_surge_xt.py, 200 shards of 10,000. Made for GPUs or TPUs. Time and scores: not
measured. Variants: synthjax/runs/variants.py. Values: configs/important.py.
"""

import ml_collections

from synthjax.configs import flow_simple
from synthjax.runs.variants import apply_variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """As flow_simple, with the spec that has effects, modulation and every oscillator type."""
    c = flow_simple.get_config()
    c.data.spec = "surge_xt"
    return apply_variants(c, arg)
