"""The paper's baseline flow without tokens: a residual MLP on whole rows, 768 wide, 9 blocks; 2 M sounds, 1 M steps.

    python -m synthjax.train --config=configs/flow_mlp.py --workdir=runs/flow_mlp --config.data.root=DATA
    python -m synthjax.train --config=configs/flow_mlp.py:full ...  # Surge Full

41.6 M parameters on Surge Full. Made for GPUs or TPUs. Time and scores: not measured. The one variant is full. Values:
configs/important.py.
"""

import ml_collections

from synthjax.configs import flow_simple
from synthjax.runs.variants import FULL, apply_variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The encoder of the base model, with one conditioning row for each block of the field."""
    c = flow_simple.get_config()
    c.model.field = field = ml_collections.ConfigDict()
    field.kind = "mlp"
    field.projection = "param2tok"
    field.dim = 768
    field.layers = 9
    field.time_features = 256
    return apply_variants(c, arg, FULL)
