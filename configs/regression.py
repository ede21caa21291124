"""The paper's regression baseline: rows straight from an audio spectrogram transformer; 2 M sounds, 1 M steps.

    python -m synthjax.train --config=configs/regression.py --workdir=runs/regression --config.data.root=DATA
    python -m synthjax.train --config=configs/regression.py:full ...  # Surge Full

768 wide, 12 layers, 16 heads, a residual head: 45.3 M parameters on Surge Full. Made for GPUs or TPUs. Time and scores:
not measured. The one variant is full. Values: here, or configs/important.py.
"""

import ml_collections

from synthjax.configs import flow_simple
from synthjax.runs.variants import FULL, apply_variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """An encoder with one query token, whose output becomes the row."""
    c = flow_simple.get_config()
    encoder = c.model.encoder
    encoder.dim = 768
    encoder.layers = 12
    encoder.heads = 16
    del c.model.field
    c.model.kind = "regression"
    # Loss. mse: mean squared error. sorted_mse and chamfer are for the k-osc task.
    c.model.loss = "mse"
    return apply_variants(c, arg, FULL)
