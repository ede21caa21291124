"""The paper's synthetic task: the parameters of k oscillators from 1,024 samples of their sum.

    python -m synthjax.train --config=configs/k_osc.py:model=param2tok,k=16,asymmetric --workdir=runs/k_osc

The argument names a model (MODELS below; default: param2tok) and any of the VARIANTS below. Nothing is read from disk:
the training step draws parameters, signals and noise, so that there is no data.root and no spec. The recipe is the
paper's, 400 k steps of batch 1,024, made for a GPU; its time and scores: not measured. Measured on two cores of an AMD
EPYC with k=4 and batch 128: 331 samples/s (param2tok, mse). Values: here, or configs/important.py.
"""

import ml_collections

from data_pipeline.console.cli import UserError
from synthjax.configs import important
from synthjax.runs.variants import Overrides, apply_variants

VARIANTS: dict[str, Overrides] = {
    "symmetric": {"k_osc.symmetric": True},
    "asymmetric": {"k_osc.symmetric": False},
    "range=released": {"k_osc.frequency_range": (20.0, 4_000.0)},
    "range=paper": {"k_osc.frequency_range": (0.0, 22_050.0)},
    "norm=batch": {"model.encoder.norm": "batch"},
    "norm=layer": {"model.encoder.norm": "layer"},
    **{f"k={k}": {"k_osc.oscillators": k} for k in (1, 2, 4, 8, 16, 32)},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """One of the study's models, on one variant of the task."""
    c = important.get_config()
    c.compute_dtype = "float32"

    c.data = data = ml_collections.ConfigDict()
    data.source = "k_osc"
    data.batch_size = 1_024
    # Processes that pair noise with rows ahead of the training step.
    data.workers = 2

    c.k_osc = k_osc = ml_collections.ConfigDict()
    # k, the number of oscillators.
    k_osc.oscillators = 4
    # True: all oscillators share one frequency range. False: each has a frequency band of its own.
    k_osc.symmetric = True
    # In Hz, as in the PyTorch code (range=released). The paper says 0 to 22,050 (range=paper).
    k_osc.frequency_range = (20.0, 4_000.0)

    names = arg.split(",")
    models = [name.removeprefix("model=") for name in names if name.startswith("model=")] or ["param2tok"]
    if len(models) > 1 or models[0] not in MODELS:
        raise UserError(f"unknown model {','.join(models)!r}: choose one of {', '.join(MODELS)}")
    c.model = MODELS[models[0]](k_osc)

    c.optim.final_lr = c.optim.lr  # No schedule.
    c.optim.clip_norm = 1.0
    c.train.steps = 400_000
    c.train.eval_every = 10_000
    c.validation.rows = 2_048
    c.validation.sampled_rows = 1_024
    c.checkpoint.every = 10_000
    # As in the PyTorch code. The paper says 100.
    c.sampling.steps = 200
    c.sampling.batch_size = 1_024
    del c.validation.probe_sounds

    return apply_variants(c, ",".join(name for name in names if not name.startswith("model=")), VARIANTS)


def _encoder(dim: int) -> ml_collections.ConfigDict:
    """The CNN on the magnitude spectrum; ``dim`` is the width of its output."""
    return ml_collections.ConfigDict({"kind": "spectral", "dim": dim, "channels": 24, "stages": 4, "norm": "batch"})


def _flow(**field: object) -> ml_collections.ConfigDict:
    common = {"time_features": 1, "init_noise": 1e-4, "projection": "param2tok"}
    return ml_collections.ConfigDict({"kind": "flow", "encoder": _encoder(128), "field": {**common, **field}})


def _transformer(task: ml_collections.ConfigDict, projection: str) -> ml_collections.ConfigDict:
    """A flow with transformer field and as many tokens as oscillators."""
    sizes = {"kind": "transformer", "dim": 128, "layers": 5, "heads": 4, "ff_dim": 256}
    model = _flow(**sizes)
    model.field.tokens = task.get_ref("oscillators")
    model.field.projection = projection
    return model


def _regression(loss: str) -> ml_collections.ConfigDict:
    """A regression: the CNN and a trunk of residual MLP blocks, trained on ``loss``."""
    return ml_collections.ConfigDict({"kind": "regression", "encoder": _encoder(384), "trunk_blocks": 4, "loss": loss})


# The models of the paper's table: flows with Param2Tok, equivariant projection and MLP field; three regressions.
MODELS = {
    "param2tok": lambda task: _transformer(task, "param2tok"),
    "equivariant": lambda task: _transformer(task, "oscillators"),
    "mlp": lambda task: _flow(kind="mlp", dim=192, layers=7),
    "mse": lambda task: _regression("mse"),
    "sorted_mse": lambda task: _regression("sorted_mse"),
    "chamfer": lambda task: _regression("chamfer"),
}
