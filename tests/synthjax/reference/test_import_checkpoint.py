"""Checkpoints of the PyTorch code become workdirs that evaluate, predict and train on, with the same outputs.

Here of the flow with Param2Tok; test_import_baselines.py has the other models.
"""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
import soundfile
from flax import nnx

from data_pipeline.console.cli import UserError
from data_pipeline.shards.mel_stats import STATS_FILE, load_stats, save_stats
from synthjax.configs import important
from synthjax.import_checkpoint import import_checkpoint
from synthjax.methods.task import SpectrogramTask
from synthjax.reference.torch_checkpoint import read_checkpoint
from synthjax.runs.model import Model
from synthjax.runs.workdir import Workdir
from synthjax.training.trainer import Trainer
from tests.helpers import REPOSITORY, TINY, run_cli
from tests.synthjax.torch_files import Call, Name, write_checkpoint

RELATIVE = 1e-4
# The sizes of the reference's small model.
SIZES: dict[str, Any] = {
    "model.encoder.dim": 64,
    "model.encoder.layers": 2,
    "model.encoder.heads": 4,
    "model.encoder.patch": (16, 16),
    "model.encoder.stride": (10, 10),
    "model.field.dim": 64,
    "model.field.layers": 3,
    "model.field.heads": 4,
    "model.field.ff_dim": 96,
    "model.field.tokens": 16,
    "model.field.time_features": 32,
    "data.batch_size": 2,
    "train.steps": 2,
    "train.eval_every": 0,
}


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict[str, np.ndarray]:
    with np.load(shared_data / "reference" / "surge_flow.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def checkpoint(shared_data: Path) -> Path:
    return shared_data / "reference" / "surge_flow.ckpt"


@pytest.fixture(scope="module")
def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    return read_checkpoint(checkpoint).weights


def config_for(root: Path, **changes: Any) -> ml_collections.ConfigDict:
    """The config of the reference's small model; changes name keys with ``__`` for the dot."""
    config = important.get_config()
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(TINY | SIZES | {"data.root": str(root)} | changes)
    return config


def config_flags(root: Path, workdir: Path, **changes: Any) -> list[str]:
    values = TINY | SIZES | {"data.root": root} | {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    return ["--config=configs/important.py", f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def imported(shared_data: Path, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled checkpoint, imported as a person does."""
    workdir = tmp_path_factory.mktemp("runs") / "imported"
    path = shared_data / "reference" / "surge_flow_compiled.ckpt"
    result = run_cli("synthjax.import_checkpoint", path, *config_flags(tiny_root, workdir), cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert "a flow with Param2Tok, 85 weights after" in result.stdout
    assert "with 4 and 4 heads, which the weights do not hold" in result.stdout
    return workdir


@partial(jax.jit, static_argnums=0)
def outputs(graph: nnx.GraphDef, params: Any, mel_spec: jax.Array, x: jax.Array, t: jax.Array) -> Any:
    """Conditioning and velocity; compiled once for all models of one graph."""
    model = nnx.merge(graph, params)
    conditioning = model.encode(mel_spec)
    return conditioning, model.velocity(x, t, conditioning)


def assert_close(actual: Any, expected: np.ndarray) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual) / scale, expected / scale, rtol=RELATIVE, atol=RELATIVE / 10)


def assert_outputs_of_the_reference(workdir: Path, reference: dict[str, np.ndarray], *, use_ema: bool) -> None:
    model = Model.load(Workdir(workdir), use_ema=use_ema)
    assert model.step == 0
    task = SpectrogramTask(model.spec, model.stats.mean.shape, model.config.data.min_std_db)
    trainer = Trainer.create(model.config, task)
    t = reference["t"][:, 0]
    conditioning, velocity = outputs(trainer.graph, model.params, reference["mel_spec"], reference["x"], t)
    assert_close(conditioning, reference["conditioning"])
    assert_close(velocity, reference["velocity"])


@pytest.mark.parametrize("use_ema", [True, False])
def test_an_imported_model_gives_the_references_outputs(
    imported: Path, reference: dict[str, np.ndarray], use_ema: bool
) -> None:
    assert_outputs_of_the_reference(imported, reference, use_ema=use_ema)


def test_so_does_a_model_that_was_saved_without_compilation(
    checkpoint: Path, tiny_root: Path, tmp_path: Path, reference: dict[str, np.ndarray]
) -> None:
    import_checkpoint(checkpoint, config_for(tiny_root), Workdir(tmp_path / "run"))
    assert_outputs_of_the_reference(tmp_path / "run", reference, use_ema=True)


def test_the_workdir_holds_what_goes_with_the_model(imported: Path, tiny_root: Path) -> None:
    config = json.loads((imported / "config.json").read_text(encoding="utf-8"))
    assert (config["model"]["encoder"]["swapped_padding"], config["data"]["min_std_db"]) == (True, 0.0)
    assert (imported / STATS_FILE).read_bytes() == (tiny_root / STATS_FILE).read_bytes()


@pytest.mark.slow
def test_the_workdir_evaluates(imported: Path, tmp_path: Path) -> None:
    result = run_cli("synthjax.evaluate", f"--workdir={imported}", "--split=test", f"--output={tmp_path}")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["about"]["checkpoint"], metrics["count"]) == (0, 10)
    assert np.isfinite(metrics["metrics"]["prediction"]["mse"]["mean"])


def test_the_workdir_predicts(imported: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100, 2))
    soundfile.write(tmp_path / "noise.wav", noise, 44_100)
    arguments = [f"--workdir={imported}", tmp_path / "noise.wav", f"--output={tmp_path / 'out'}", "--render=False"]
    result = run_cli("synthjax.predict", *arguments)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "noise.vstpreset").stat().st_size > 10_000


@pytest.mark.slow
def test_the_workdir_trains_on(imported: Path, tiny_root: Path, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(imported, tmp_path / "run"))
    quirks = {"model__encoder__swapped_padding": True, "data__min_std_db": 0}
    result = run_cli("synthjax.train", *config_flags(tiny_root, workdir, **quirks), cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert records[0]["lr"] == pytest.approx(1e-4)
    before = Model.load(Workdir(imported), use_ema=False)
    after = Model.load(Workdir(workdir), checkpoint="latest", use_ema=False)
    assert after.step == 2
    # Two steps of Adam from the imported weights, not from others.
    moved = jax.tree.leaves(jax.tree.map(lambda old, new: np.abs(new - old).max(), before.params, after.params))
    assert 1e-5 < max(moved) < 2.5e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__encoder__kind": "cnn"}, ["model.encoder.kind is cnn, the weights need ast"]),
        ({"model__encoder__patch": (32, 16)}, ["model.encoder.patch is (32, 16), the weights need (16, 16)"]),
        (
            {"model__encoder__dim": 32, "model__encoder__layers": 3, "model__encoder__stride": (16, 16)},
            [
                "model.encoder.dim is 32, the weights need 64",
                "model.encoder.layers is 3, the weights need 2",
                "model.encoder.stride is (16, 16), the weights need (10, 10)",
            ],
        ),
        (
            {"model__field__dim": 32, "model__field__layers": 2, "model__field__ff_dim": 64},
            [
                "model.field.dim is 32, the weights need 64",
                "model.field.layers is 2, the weights need 3",
                "model.field.ff_dim is 64, the weights need 96",
            ],
        ),
        (
            {"model__field__tokens": 8, "model__field__time_features": 8},
            ["model.field.tokens is 8, the weights need 16", "model.field.time_features is 8, the weights need 32"],
        ),
        ({"model__field__heads": 3}, ["model.field.dim=64 is not a multiple of model.field.heads=3"]),
        ({"data__root": "/nowhere"}, [STATS_FILE]),
    ],
)
def test_a_config_that_does_not_fit_is_told_what_would(
    checkpoint: Path, tiny_root: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        import_checkpoint(checkpoint, config_for(tiny_root, **changes), Workdir(tmp_path / "run"))
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "run").exists()


def changed(weights: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The reference's weights, with one thing wrong that ``name`` says."""
    basis, norm = "vector_field.time_encoding.basis", "encoder.blocks.1.norm1.weight"
    projection = "vector_field.projection._assignment"
    match name:
        case "missing":
            return {key: value for key, value in weights.items() if key != norm}
        case "left over":
            return weights | {"clap.weight": np.zeros(2, np.float32)}
        case "not finite":
            return weights | {norm: np.full(64, np.nan, np.float32)}
        case "twice":
            return weights | {norm.replace("blocks", "_orig_mod.blocks"): weights[norm]}
        case "other shape":
            return weights | {norm: np.ones((64, 1), np.float32)}
        case "other shape in all layers":
            return weights | {key: np.ones(65, np.float32) for key in weights if re.search(r"enc.*norm1.weight", key)}
        case "scalar":
            return weights | {projection: np.float32(1).reshape(())}
        case "other frequencies":
            return weights | {basis: 2 * weights[basis]}
        case "queries":
            tokens = weights["encoder.embed_tokens"]
            return weights | {"encoder.embed_tokens": np.ascontiguousarray(tokens[:, :2])}
        case "positions":
            return weights | {"encoder.positional_encoding.pe": np.zeros((1, 484, 64), np.float32)}
        case "more positions":
            name = "encoder.positional_encoding.pe"
            return weights | {name: np.tile(weights[name], (2, 1, 1))}
        case "no blocks":
            return {key: value for key, value in weights.items() if "encoder.blocks" not in key}
        case "no field":
            return {key: value for key, value in weights.items() if "vector_field" not in key}
        case "columns":
            return weights | {
                projection: np.zeros((16, 300), np.float32),
                "vector_field.projection._in_projection": np.zeros((300, 64), np.float32),
                "vector_field.projection._out_projection": np.zeros((64, 300), np.float32),
            }
    raise ValueError(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "weight encoder.blocks.1.norm1.weight is missing"),
        ("left over", "1 weights have no place in the model: clap.weight"),
        ("not finite", "weight encoder.blocks.1.norm1.weight is not finite"),
        ("twice", "two weights encoder.blocks.1.norm1.weight"),
        ("other shape", "does not hold the weights of this model"),
        ("other shape in all layers", "encoder.blocks.norm1.scale is of shape (2, 65), not (2, 64)"),
        ("scalar", "does not hold the weights of this model"),
        ("other frequencies", "vector_field.time_encoding.basis has other frequencies"),
        ("queries", "there are 2 query tokens, not 3"),
        ("positions", "model.encoder.stride is (10, 10), the weights need one of 481 patches"),
        (
            "more positions",
            "encoder.positional_encoding.pe has shape (2, 483, 64), whose first 1 axes are not of length 1",
        ),
        ("no blocks", "weights encoder.blocks.0 are missing"),
        (
            "no field",
            "holds no model that can be imported: it has neither vector_field.projection._assignment (of a flow with "
            "Param2Tok) nor vector_field.in_proj.weight (of a flow with MLP field) nor net.final_proj.weight (of a "
            "regression)",
        ),
        ("columns", "data.spec is surge_simple, the weights need surge_xt"),
    ],
)
def test_other_weights_are_refused(
    weights: dict[str, np.ndarray], tiny_root: Path, tmp_path: Path, name: str, words: str
) -> None:
    path = write_checkpoint(tmp_path / "other.ckpt", changed(weights, name))
    with pytest.raises(UserError, match=re.escape(words)):
        import_checkpoint(path, config_for(tiny_root), Workdir(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_statistics_that_no_model_was_trained_with_are_refused(
    checkpoint: Path, tiny_root: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tiny_root.parent, tmp_path / "data")) / "splits"
    stats = load_stats(root / STATS_FILE)
    stats.std[0, 5, 7] = 0
    save_stats(root / STATS_FILE, stats)
    with pytest.raises(UserError, match="a deviation is 0"):
        import_checkpoint(checkpoint, config_for(root), Workdir(tmp_path / "run"))


def test_a_workdir_with_a_run_is_refused_and_left_alone(checkpoint: Path, tiny_root: Path, imported: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in imported.rglob("*")}
    with pytest.raises(UserError, match="holds a run, or a part of one"):
        import_checkpoint(checkpoint, config_for(tiny_root), Workdir(imported))
    assert {path: path.stat().st_mtime_ns for path in imported.rglob("*")} == before


def test_a_malicious_file_is_refused_and_leaves_nothing(
    weights: dict[str, np.ndarray], tiny_root: Path, tmp_path: Path
) -> None:
    call = Call(Name("os", "system"), (f"touch {tmp_path / 'ran'}",))
    path = write_checkpoint(tmp_path / "evil.ckpt", weights, callbacks=[call])
    with pytest.raises(UserError, match=r"refers to os\.system"):
        import_checkpoint(path, config_for(tiny_root), Workdir(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "ran").exists()
