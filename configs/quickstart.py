"""The flow for Dexed of configs/flow_dexed.py, trained for less than a minute; `make quickstart` runs it.

    python -m synthjax.train --config=configs/quickstart.py --workdir=runs/quickstart

Values: configs/flow_dexed.py and configs/important.py.
"""

import ml_collections

from synthjax.configs import flow_dexed


def get_config() -> ml_collections.ConfigDict:
    """Smaller batches and fewer steps."""
    c = flow_dexed.get_config()
    c.data.batch_size = 64
    c.train.steps = 160
    c.train.eval_every = 80
    c.train.log_every = 25
    c.validation.rows = 256
    # The probe gets little processor time: its sounds would not be finished before training ends.
    c.validation.probe_sounds = 0
    c.checkpoint.every = 80
    return c
