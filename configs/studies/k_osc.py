"""The paper's synthetic study: every model at k = 4, 8, 16, 32 oscillators, symmetric and asymmetric.

    python -m synthjax.study configs/studies/k_osc.py --workdir=runs/k_osc           # 400 k steps a run
    python -m synthjax.study configs/studies/k_osc.py:cpu --workdir=runs/k_osc_cpu   # k = 4, 1,200 steps a run

The whole study is made for a GPU. Its time and scores: not measured. The one variant is cpu, measured on two cores: 3
to 10 minutes a run beside other work. Its log spectral distance, mean of two seeds, is 10.66 dB (sorted_mse) to 11.86
dB (mse) on the symmetric task and 8.95 dB (mse) to 11.62 dB (param2tok) on the asymmetric one; random rows give 12.19
and 12.14.
"""

import ml_collections

from synthjax.runs.variants import Overrides, apply_variants

VARIANTS: dict[str, Overrides] = {
    "cpu": {
        "grid.k": (4,),
        "overrides.data.batch_size": 64,
        "overrides.data.workers": 0,
        # Two cores spend nearly all their time in the encoder. A third of the width allows nine times as many examples.
        "overrides.model.encoder.channels": 8,
        "overrides.optim.lr": 1e-3,
        "overrides.optim.final_lr": 1e-5,
        "overrides.optim.warmup_steps": 50,
        "overrides.train.steps": 1_200,
        "overrides.train.eval_every": 0,
        "overrides.checkpoint.every": 600,
        "overrides.sampling.steps": 20,
        "rows": 1_024,
    },
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """The values that the study varies, those that all its runs share, and the layout of its figure."""
    c = ml_collections.ConfigDict()
    # Each run takes one value of every entry: CONFIG:model=...,k=...,symmetric.
    c.config = "configs/k_osc.py"
    c.grid = grid = ml_collections.ConfigDict()
    grid.task = ("symmetric", "asymmetric")
    grid.k = (4, 8, 16, 32)
    grid.model = ("param2tok", "equivariant", "mlp", "mse", "sorted_mse", "chamfer")
    c.seeds = (0, 1)

    # Values that every run sets.
    c.overrides = overrides = ml_collections.ConfigDict()
    overrides.data = ml_collections.ConfigDict({"batch_size": 1_024, "workers": 2})
    overrides.model = ml_collections.ConfigDict({"encoder": {"channels": 24}})
    overrides.optim = ml_collections.ConfigDict({"lr": 1e-4, "final_lr": 1e-4, "warmup_steps": 0})
    overrides.train = ml_collections.ConfigDict({"steps": 400_000, "eval_every": 10_000})
    overrides.checkpoint = ml_collections.ConfigDict({"every": 10_000})
    overrides.sampling = ml_collections.ConfigDict({"steps": 200})

    # Held-out rows on which a run is measured.
    c.rows = 2_048

    # The figure: a column of panels for each value of one entry, a line for each of another, against a third.
    c.figure = figure = ml_collections.ConfigDict()
    figure.panels = "task"
    figure.lines = "model"
    figure.against = "k"
    figure.metrics = ("lsd", "chamfer", "linear_assignment_distance")

    return apply_variants(c, arg, VARIANTS)
