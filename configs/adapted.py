"""A bundle's model, trained further on mixtures of the patches in a folder; synthjax.adapt runs it in every round.

    python -m synthjax.train --config=configs/adapted.py:my.zip --workdir=runs/adapted --config.data.prior=ANSWERS

ANSWERS has preset files, such as those that synthjax.predict wrote for recordings. The rendered sounds are corrupted as
recordings are. Model, spec and precision are those of the bundle. Values: configs/important.py.
"""

import ml_collections

from synthjax.configs import flow_dexed, important
from synthjax.runs.bundles import read_bundle


def get_config(bundle: str = "") -> ml_collections.ConfigDict:
    """A tenth of the learning rate for 1,000 steps; without a bundle, with a new model of configs/flow_dexed.py."""
    c = flow_dexed.get_config()
    if bundle:
        given = read_bundle(bundle)
        if not given.has_model:
            raise ValueError(f"{bundle} holds no model, only a library")
        c = given.config()
        c.data = {**important.get_config().data.to_dict(), **c.data.to_dict()}  # A run on shards lacks some values.
    c.start_from = bundle

    c.data.source = "render"
    c.data.cache = "none"
    for way, likely in {"detune": 0.3, "cut": 0.2, "room": 0.3, "noise": 0.3, "equaliser": 0.5, "codec": 0.1}.items():
        c.data.corruption[way] = likely
    c.optim.lr /= 10
    c.optim.final_lr = c.optim.lr / 100
    c.optim.warmup_steps = 50
    c.train.steps = 1_000
    c.train.eval_every = 250
    c.checkpoint.every = 250
    return c
