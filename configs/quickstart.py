"""A small model that learns the built-in synthesizer on a laptop's CPU in minutes; `make quickstart` runs it.

    python -m synthjax.train --config=configs/quickstart.py --workdir=runs/quickstart

Every value is explained in configs/important.py.
"""

import ml_collections

from configs import important


def get_config() -> ml_collections.ConfigDict:
    """The method of the large experiments in a model of 0.8 M parameters."""
    c = important.get_config()
    c.compute_dtype = "float32"

    c.data.root = "data/quickstart"
    c.data.spec = "subtractive"
    c.data.batch_size = 32

    encoder, field = c.model.encoder, c.model.field
    # Pieces of time over all mels: each shows a whole spectrum, pitch and all.
    encoder.patch = (128, 16)
    encoder.stride = (128, 16)
    encoder.dim = 64
    encoder.layers = 2
    encoder.heads = 4
    field.dim = 128
    field.layers = 2
    field.heads = 4
    field.ff_dim = 128
    field.tokens = 34
    field.time_features = 64
    # A short training cannot wait for the parameters' embeddings to part by themselves.
    field.init_noise = 0.1

    # In short trials the model took to the sound sooner without transport.
    c.flow.coupling = False
    c.optim.lr = 1e-3
    c.optim.warmup_steps = 50
    c.optim.clip_norm = 10.0
    c.optim.ema_decay = 0.99
    c.train.steps = 2_500
    c.train.eval_every = 1_250
    c.validation.rows = 256
    c.validation.sampled_rows = 64
    c.checkpoint.every = 500

    # Random draws from the posterior: guidance would narrow it.
    c.sampling.guidance = 1.0
    return c
