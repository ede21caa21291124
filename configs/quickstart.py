"""A small model that learns the built-in synthesizer on a laptop's CPU in minutes; `make quickstart` runs it.

    python -m synthjax.train --config=configs/quickstart.py --workdir=runs/quickstart

Measured on two cores of an AMD EPYC: `make quickstart` takes 10.2 minutes from a fresh clone, installation included.
Parameter MSE of the mean of 16 draws, 128 held-out sounds: 0.1116 (the training mean: 0.1250). MSS of a single draw,
rendered: 4.7 dB (a random training sound: 10.8 dB). Values: configs/important.py.
"""

import ml_collections

from synthjax.configs import important


def get_config() -> ml_collections.ConfigDict:
    """The method of the large experiments in a model of 0.8 M parameters."""
    c = important.get_config()
    c.compute_dtype = "float32"

    c.data.root = "data/quickstart"
    c.data.spec = "subtractive"
    c.data.batch_size = 64

    encoder, field = c.model.encoder, c.model.field
    # Pieces of time over all mels: each shows a whole spectrum and so its pitch.
    encoder.patch = (128, 16)
    encoder.stride = (128, 16)
    encoder.dim = 64
    encoder.layers = 2
    encoder.heads = 4
    # Half as many tokens as columns, and few heads: a cheaper step, so that the same minutes hold more steps.
    field.dim = 128
    field.layers = 2
    field.heads = 2
    field.ff_dim = 128
    field.tokens = 16
    # Few: for t in [0, 1] only the fastest angles change much.
    field.time_features = 16
    # Large: a short training cannot wait until nearly equal embeddings have moved apart.
    field.init_noise = 0.1

    # In short trials the model learnt to use the sound sooner without coupling.
    c.flow.coupling = False
    # Below the default, since sampling below uses no guidance.
    c.flow.guidance_dropout = 0.05
    # In short trials the noise was learnt later with 1e-3, and the sound later with 4e-3.
    c.optim.lr = 1.5e-3
    c.optim.warmup_steps = 100
    c.optim.b2 = 0.98
    c.optim.clip_norm = 10.0
    c.optim.ema_decay = 0.99
    c.train.steps = 3_000
    c.train.eval_every = 1_500
    c.validation.rows = 256
    c.validation.sampled_rows = 64
    # The probe gets little processor time: more sounds would not be finished before training ends.
    c.validation.probe_sounds = 2
    c.checkpoint.every = 500

    # No guidance: plain draws from the posterior, which guidance would narrow.
    c.sampling.guidance = 1.0
    return c
