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
    c.data.batch_size = 64

    encoder, field = c.model.encoder, c.model.field
    # Pieces of time over all mels: each shows a whole spectrum, pitch and all.
    encoder.patch = (128, 16)
    encoder.stride = (128, 16)
    encoder.dim = 64
    encoder.layers = 2
    encoder.heads = 4
    # Half as many tokens as columns, and few heads: cheaper rows, so that more of them are seen in the same minutes.
    field.dim = 128
    field.layers = 2
    field.heads = 2
    field.ff_dim = 128
    field.tokens = 16
    # On [0, 1] only the fastest angles move.
    field.time_features = 16
    # A short training cannot wait for the parameters' embeddings to part by themselves.
    field.init_noise = 0.1

    # In short trials the model took to the sound sooner without transport.
    c.flow.coupling = False
    # Guidance is not used below; less of the sounds go to making it possible.
    c.flow.guidance_dropout = 0.05
    # At 1e-3 the noise is learnt later, at 4e-3 the sound is.
    c.optim.lr = 1.5e-3
    c.optim.warmup_steps = 100
    c.optim.b2 = 0.98
    c.optim.clip_norm = 10.0
    c.optim.ema_decay = 0.99
    c.train.steps = 3_000
    c.train.eval_every = 1_500
    c.validation.rows = 256
    c.validation.sampled_rows = 64
    # The probe takes little of the processors' time: more sounds would not be done before the end.
    c.validation.probe_sounds = 2
    c.checkpoint.every = 500

    # Random draws from the posterior: guidance would narrow it.
    c.sampling.guidance = 1.0
    return c
