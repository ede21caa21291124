"""A flow for Dexed (DX7) that a laptop's CPU trains on rows rendered as they are needed; no data set is kept.

    python -m synthjax.train --config=configs/flow_dexed.py --workdir=runs/flow_dexed --config.data.prior=FOLDER

A small audio spectrogram transformer, and an MLP as the vector field: 29 minutes on two cores of an AMD EPYC. FOLDER
has .syx files, whose patches are mixed; without it rows are drawn by the weights of the spec. Scores, and what the
model does not learn in that time: docs/results.md. Values: configs/important.py.
"""

import ml_collections

from synthjax.configs import important


def get_config() -> ml_collections.ConfigDict:
    """2.5 M parameters."""
    c = important.get_config()
    c.compute_dtype = "float32"

    c.data.source = "render"
    c.data.spec = "dexed"
    c.data.batch_size = 128
    # On two cores the model learns from many more rows than are rendered in the same time.
    c.data.reuse = 16

    encoder = c.model.encoder
    # Pieces of time over all mels: each shows a whole spectrum and so its pitch.
    encoder.patch = (128, 16)
    encoder.stride = (128, 16)
    encoder.dim = 64
    encoder.layers = 2
    encoder.heads = 4
    c.model.field = field = ml_collections.ConfigDict()
    field.kind = "mlp"
    field.projection = "param2tok"
    field.dim = 256
    field.layers = 6
    field.time_features = 64

    c.flow.coupling = False
    c.flow.guidance_dropout = 0.05
    c.optim.lr = 2e-3
    c.optim.warmup_steps = 100
    c.optim.b2 = 0.98
    c.optim.clip_norm = 10.0
    c.optim.ema_decay = 0.995
    c.train.steps = 5_200
    c.train.eval_every = 1_000
    c.validation.rows = 512
    c.validation.sampled_rows = 64
    c.validation.probe_sounds = 4
    c.checkpoint.every = 500

    # Chosen by the sounds of patches that people made (docs/results.md).
    c.sampling.guidance = 2.0
    return c
