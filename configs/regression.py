"""The paper's regression baseline: rows straight from an audio spectrogram transformer; 2 M sounds, 1 M steps.

    python -m synthjax.train --config=configs/regression.py --workdir=runs/regression --config.data.root=DATA
    python -m synthjax.train --config=configs/regression.py:full ...  # Surge Full

768 wide, 12 layers, 16 heads, a residual head: 45.3 M parameters on Surge Full. Every value is explained in
configs/important.py where it is not here.
"""

import ml_collections

from configs import flow_simple
from configs.variants import FULL, apply_variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """One query token, whose output becomes the row."""
    c = flow_simple.get_config()
    encoder = c.model.encoder
    encoder.dim = 768
    encoder.layers = 12
    encoder.heads = 16
    del c.model.field
    c.model.kind = "regression"
    # mse; the others are for the k-osc task.
    c.model.loss = "mse"
    return apply_variants(c, arg, FULL)
