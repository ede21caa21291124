"""The paper's generative baseline: a VAE with two normalising flows (Le Vaillant et al. 2021); 2 M sounds, 1 M steps.

    python -m synthjax.train --config=configs/flow_vae.py --workdir=runs/flow_vae --config.data.root=DATA
    python -m synthjax.train --config=configs/flow_vae.py:full ...  # Surge Full

39.5 M parameters on Surge Simple, 44.3 M on Surge Full. Values are explained in configs/important.py where they are not
explained here.
"""

import ml_collections

from configs import flow_simple
from configs.variants import FULL, apply_variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The latent space is as wide as a row."""
    c = flow_simple.get_config()
    c.model = model = ml_collections.ConfigDict()
    model.kind = "flow_vae"
    # Of the output of each stage; the decoder's last stage gives the spectrogram's own channels.
    model.encoder_channels = (16, 32, 64, 64, 128, 256, 512)
    model.decoder_channels = (512, 256, 128, 64, 32, 16)
    # Residual networks of the couplings: width and blocks.
    model.hidden = 512
    model.blocks = 2
    # Couplings of the flow on latents, and of the one from latents to rows.
    model.latent_layers = 6
    model.regression_layers = 16
    # Weight of the latent loss, linear over so many steps and constant from there.
    model.beta = beta = ml_collections.ConfigDict()
    beta.start = 0.1
    beta.end = 0.2
    beta.steps = 60_000
    return apply_variants(c, arg, FULL)
