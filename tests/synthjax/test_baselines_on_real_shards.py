"""The paper's baselines learn from real Surge XT shards, and are evaluated as the flow is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.shards.mel_stats import STATS_FILE, compute_stats, save_stats
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.splits import write_splits
from tests.helpers import REPOSITORY, run_cli

pytestmark = pytest.mark.slow
STEPS = 40
COMMON: dict[str, Any] = {
    "compute_dtype": "float32",
    "data.batch_size": 32,
    "data.workers": 0,
    "optim.lr": 1e-3,
    "optim.clip_norm": 10.0,
    "train.steps": STEPS,
    "train.log_every": 1,
    "train.eval_every": STEPS,
    "validation.sampled_rows": 32,
    "validation.solver_steps": 2,
    "validation.probe_sounds": 0,
    "checkpoint.every": STEPS,
    "sampling.steps": 2,
}
SMALL_TRANSFORMER = {
    "model.encoder.dim": 32,
    "model.encoder.layers": 2,
    "model.encoder.heads": 2,
    "model.encoder.patch": (128, 16),
    "model.encoder.stride": (128, 16),
}
SMALL: dict[str, dict[str, Any]] = {
    "flow_vae": {
        "model.encoder_channels": (4, 8, 8, 8, 16, 16, 32),
        "model.decoder_channels": (32, 16, 16, 8, 8, 8),
        "model.hidden": 32,
        "model.blocks": 1,
        "model.latent_layers": 2,
        "model.regression_layers": 4,
    },
    "regression": SMALL_TRANSFORMER,
    "flow_mlp": SMALL_TRANSFORMER | {"model.field.dim": 64, "model.field.layers": 3},
}
# A term that must fall, and to what share of its start at least. The flow's loss is bounded by the noise in it.
FALLS = {"flow_vae": {"loss": 0.9, "loss_parameters": 0.9}, "regression": {"loss": 0.85}, "flow_mlp": {"loss": 0.97}}


@pytest.fixture(scope="module")
def root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(shared_data / "surge_simple", folder / "shards")
    write_splits(folder / "shards", folder, {"train": [0, 1], "val": [2], "test": [3]})
    save_stats(folder / STATS_FILE, compute_stats(ShardReader(folder / "train.h5")))
    return folder


@pytest.mark.parametrize("name", SMALL)
def test_a_baseline_learns_and_is_evaluated(root: Path, tmp_path: Path, name: str) -> None:
    values = COMMON | {"data.root": root} | SMALL[name]
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    workdir = tmp_path / "run"
    config = f"--config=configs/{name}.py"
    # Steps enough to pay for the compiler's optimisations, which other tests do without.
    trained = run_cli("synthjax.train", config, f"--workdir={workdir}", *flags, cwd=REPOSITORY, XLA_FLAGS="")
    assert trained.returncode == 0, trained.stderr
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == STEPS
    for term, share in FALLS[name].items():
        curve = [record[term] for record in records]
        assert np.mean(curve[-5:]) < share * np.mean(curve[:5]), term
    assert {"val/loss", "val/mse"} <= records[-1].keys()

    evaluated = run_cli("synthjax.evaluate", f"--workdir={workdir}", "--split=test", f"--output={tmp_path / 'out'}")
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["count"] == 32
    # Rows are in [0, 1], of which the mean row is 0.08 off.
    assert 0.0 < metrics["metrics"]["prediction"]["mse"]["mean"] < 0.4
