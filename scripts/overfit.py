"""Overfits a model to 64 real sounds and prints its loss beside that of the PyTorch reference.

    python scripts/overfit.py --data_root=DATA --json=FILE

DATA is a data set whose train.h5 holds the 64 rows, beside stats.npz. The networks are small, all rows are one batch,
guidance dropout is off and coupling is on. Prints the loss (mean of the last 20 steps) beside the reference's at the
same steps, then the error of rows sampled for the same sounds. It takes about an hour on two CPU cores.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from data_pipeline.audio.contract import MEL_SHAPE
from data_pipeline.console import cli
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.mel_stats import STATS_FILE, load_stats
from data_pipeline.shards.reader import PARAM_ARRAY
from synthjax.cluster import sharding
from synthjax.configs import important
from synthjax.methods.examples import from_model_scale
from synthjax.methods.sampling import Sampling
from synthjax.methods.task import SpectrogramTask
from synthjax.runs.model import jit_sampler
from synthjax.tasks.batches import EvalBatches, Shuffled, TrainBatches, open_split, prefetch
from synthjax.training.trainer import Trainer, jit_init, jit_train_step

ROWS, STEPS, MEAN_OF = 64, 2_000, 20
# Loss of the PyTorch reference in bf16 by step, and the error of its sampled rows.
REFERENCE = {1: 1.11, 200: 1.06, 300: 0.81, 600: 0.55, 1_100: 0.19, 2_000: 0.14}
REFERENCE_MSE = 0.0155


def make_config(data_root: str) -> Any:
    """Returns the config: d 128, 2 layers, 4 heads, 32 tokens in both networks, Adam 1e-3 after 100 warm-up steps."""
    config = important.get_config()
    config.compute_dtype = "float32"
    config.data.root, config.data.batch_size = data_root, ROWS
    for network in (config.model.encoder, config.model.field):
        network.update({"dim": 128, "layers": 2, "heads": 4})
    config.model.field.update({"ff_dim": 128, "tokens": 32})
    config.flow.guidance_dropout = 0.0
    config.optim.update({"lr": 1e-3, "final_lr": 1e-3, "warmup_steps": 100})
    config.train.steps = STEPS
    return config


def main(argv: list[str]) -> None:
    """Runs the command."""
    config = make_config(flags.FLAGS.data_root)
    spec, stats = load_spec(config.data.spec), load_stats(Path(config.data.root) / STATS_FILE)
    reader = open_split(config.data.root, "train", spec)
    if len(reader) != ROWS:
        raise cli.UserError(f"{reader.path} has {len(reader)} rows; this experiment is on {ROWS}")
    mesh = sharding.make_mesh(config.mesh)
    rows = sharding.batch_sharding(mesh)
    trainer = Trainer.create(config, SpectrogramTask(spec, MEL_SHAPE, config.data.min_std_db))
    shardings = trainer.state_shardings(mesh)
    state, step = jit_init(trainer, shardings)(), jit_train_step(trainer, mesh, shardings)
    stats = jax.device_put(stats, sharding.replicated(mesh))
    order = Shuffled(reader, ROWS, config.seed)
    batches = TrainBatches(
        reader, order, batch_size=ROWS, seed=config.seed, coupled=True, local_rows=range(ROWS), steps=STEPS
    )
    started, losses = time.monotonic(), []
    print(f"{'step':>6}{'loss':>9}{'reference':>11}{'minutes':>9}", flush=True)
    with prefetch(batches, workers=0) as stream:
        for number, batch in enumerate(stream, start=1):
            state, metrics = step(state, sharding.place(batch, rows), stats)
            losses.append(float(metrics["loss"]))
            if number in REFERENCE or number % 100 == 0:
                minutes, reference = (time.monotonic() - started) / 60, REFERENCE.get(number, "")
                print(f"{number:>6}{np.mean(losses[-MEAN_OF:]):>9.3f}{reference:>11}{minutes:>9.1f}", flush=True)
    sample = jit_sampler(trainer, mesh, Sampling(guidance=1.0, solver="rk4", steps=20))
    batch = EvalBatches(reader, batch_size=ROWS, seed=config.seed, local_rows=range(ROWS))[0]
    predicted = from_model_scale(
        np.asarray(sample(state.params, {name: batch[name] for name in ("mel_spec", "x0")}, stats))
    )
    true = reader.read_rows(PARAM_ARRAY, np.arange(ROWS))
    mse, mean_mse = float(np.square(predicted - true).mean()), float(true.var(axis=0).mean())
    print(f"sampled rows: MSE {mse:.4f} (reference {REFERENCE_MSE}; predicting the mean row {mean_mse:.4f})")
    if flags.FLAGS.json:
        figures = {"losses": losses, "mse": mse, "mse_of_mean_row": mean_mse, "seconds": time.monotonic() - started}
        Path(flags.FLAGS.json).write_text(json.dumps(figures) + "\n", encoding="utf-8")


if __name__ == "__main__":
    flags.DEFINE_string("data_root", None, "Folder with train.h5 of 64 rows and stats.npz.")
    flags.DEFINE_string("json", None, "File for all losses and the final figures.")
    flags.mark_flag_as_required("data_root")
    cli.run(main)
