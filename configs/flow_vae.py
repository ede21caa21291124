"""The paper's generative baseline: a VAE with two normalising flows (Le Vaillant et al. 2021); 2 M sounds, 1 M steps.

    python -m synthjax.train --config=configs/flow_vae.py --workdir=runs/flow_vae --config.data.root=DATA
    python -m synthjax.train --config=configs/flow_vae.py:full ...  # Surge Full

39.5 M parameters on Surge Simple, 44.3 M on Surge Full. Made for GPUs or TPUs. Time and scores: not measured. The one
variant is full. Values: here, or configs/important.py.
"""

import ml_collections

from synthjax.configs import flow_simple
from synthjax.runs.variants import FULL, apply_variants


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The VAE of the paper's comparison; its latent space is as wide as a row."""
    c = flow_simple.get_config()
    c.model = model = ml_collections.ConfigDict()
    model.kind = "flow_vae"
    # Channels after each stage. The decoder's last stage, not listed, gives the channels of the spectrogram.
    model.encoder_channels = (16, 32, 64, 64, 128, 256, 512)
    model.decoder_channels = (512, 256, 128, 64, 32, 16)
    # Width and number of blocks of the couplings' residual networks.
    model.hidden = 512
    model.blocks = 2
    # Number of couplings of the flow on latents, and of the flow from latents to rows.
    model.latent_layers = 6
    model.regression_layers = 16
    # Weight of the latent loss: linear from start to end over this many steps, then constant.
    model.beta = beta = ml_collections.ConfigDict()
    beta.start = 0.1
    beta.end = 0.2
    beta.steps = 60_000
    return apply_variants(c, arg, FULL)
