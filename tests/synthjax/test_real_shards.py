"""The whole path on real Surge XT shards in the PyTorch code's format: splits to a prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_pipeline.params.spec import load_spec
from tests.helpers import REPOSITORY, run_cli, tiny_flags


def run(module: str, *arguments: object) -> str:
    result = run_cli(module, *arguments, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("surge_simple", ["--train-shards", "0,1", "--val-shards", "2", "--test-shards", "3"]),
        # No validation split.
        ("surge_xt", ["--train_shards=0", "--test_shards=1"]),
    ],
)
def test_shards_of_the_pytorch_code_train_evaluate_and_predict(
    shared_data: Path, tmp_path: Path, name: str, shards: list[str]
) -> None:
    shutil.copytree(shared_data / name, tmp_path / "data" / "shards")
    splits, workdir = tmp_path / "data" / "splits", tmp_path / "run"
    run("data_pipeline.splits", tmp_path / "data" / "shards", splits, *shards)
    run("data_pipeline.stats", splits)
    assert "no faults" in run("data_pipeline.check", splits)
    run("synthjax.train", *tiny_flags(splits, workdir, data__spec=name, train__steps=3))
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert ("val/loss" in records[-1]) == (name == "surge_simple")

    run("synthjax.evaluate", f"--workdir={workdir}", "--split=test", f"--output={tmp_path / 'evaluation'}")
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["count"] == (32 if name == "surge_simple" else 24)
    assert ("category_accuracy" in metrics["metrics"]["prediction"]) == (name == "surge_xt")

    sound = shared_data / "golden" / f"{name}_00_render0.flac"
    run("synthjax.predict", f"--workdir={workdir}", sound, f"--output={tmp_path / 'out'}")
    prediction = json.loads((tmp_path / "out" / f"{sound.stem}.json").read_text(encoding="utf-8"))
    spec = load_spec(name)
    note = {parameter.name: prediction[parameter.name] for parameter in spec.note_params}
    values = {name: parameter["value"] for name, parameter in prediction["parameters"].items()}
    assert spec.encode(values | note).shape == (spec.width,)  # Every value is legal.
