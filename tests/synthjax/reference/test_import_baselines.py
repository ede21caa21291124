"""Checkpoints of the PyTorch code's other models for Surge, the flow with MLP field and the regression, as workdirs."""

from __future__ import annotations

import json
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
from flax import nnx

from data_pipeline.console.cli import UserError
from data_pipeline.shards.mel_stats import standardise
from synthjax.cluster import sharding
from synthjax.configs import flow_mlp, flow_vae, important, k_osc, regression
from synthjax.import_checkpoint import import_checkpoint
from synthjax.methods.task import SpectrogramTask
from synthjax.runs.checkpoints import Checkpoints
from synthjax.runs.model import Model
from synthjax.runs.workdir import Workdir
from synthjax.training.trainer import Trainer, TrainState, abstract_state
from tests.helpers import TINY, run_cli
from tests.synthjax.torch_files import write_checkpoint

Arrays = dict[str, np.ndarray]
RELATIVE = 1e-5
CONFIGS = {"mlp": flow_mlp, "regression": regression, "transformer": important, "vae": flow_vae, "k_osc": k_osc}
KINDS = ("mlp", "regression")
# The sizes of the reference's small models.
ENCODER = {"model.encoder.dim": 64, "model.encoder.layers": 2, "model.encoder.heads": 4}
FIELD = {"model.field.dim": 48, "model.field.layers": 3, "model.field.time_features": 32}
BESIDE_THE_MODEL = {key: value for key, value in TINY.items() if not key.startswith("model.")}
SIZES: dict[str, dict[str, Any]] = {
    "mlp": BESIDE_THE_MODEL | ENCODER | FIELD,
    "regression": BESIDE_THE_MODEL | ENCODER,
}


@cache
def arrays(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "reference"


@pytest.fixture(scope="module")
def reference(folder: Path) -> Arrays:
    """Inputs and outputs of the small models."""
    return arrays(folder / "baselines.npz")


def module(path: Path, name: str, renamed: str) -> Arrays:
    """The weights of one module of the reference, by the name that it has in a checkpoint."""
    prefix = f"weights/{name}."
    found = {key: array for key, array in arrays(path).items() if key.startswith(prefix)}
    assert found
    return {f"{renamed}.{key.removeprefix(prefix)}": array for key, array in found.items()}


def weights_of(kind: str, folder: Path) -> Arrays:
    """The state_dict in a small model's checkpoint."""
    baselines, flow, tasks = (folder / f"{name}.npz" for name in ("baselines", "surge_flow", "k_osc_models"))
    match kind:
        case "mlp":
            return module(flow, "encoder", "encoder") | module(baselines, "surge_mlp", "vector_field")
        case "regression":
            return module(baselines, "surge_ffn", "net")
        case "transformer":
            return module(flow, "encoder", "encoder") | module(flow, "vector_field", "vector_field")
        case "k-osc regression":
            return module(baselines, "k_osc_ffn", "net")
    return module(tasks, "encoder", "encoder") | module(tasks, kind.removeprefix("k-osc "), "vector_field")


def compiled(weights: Arrays) -> Arrays:
    """As torch.compile names them: the networks are compiled, each as a whole."""
    return {re.sub(r"^(\w+)\.", r"\1._orig_mod.", name): array for name, array in weights.items()}


def config_for(kind: str, root: Path, **changes: Any) -> ml_collections.ConfigDict:
    """The config of a small model; changes name keys with ``__`` for the dot."""
    config = CONFIGS[kind].get_config()
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config.update_from_flattened_dict(SIZES.get(kind, {}) | changes)
    if config.data.source == "shards":
        config.data.root = str(root)
    return config


def import_kind(kind: str, weights: Arrays, root: Path, path: Path, **changes: Any) -> Path:
    """The workdir that is made of the weights."""
    checkpoint = write_checkpoint(path / "last.ckpt", weights)
    import_checkpoint(checkpoint, config_for(kind, root, **changes), Workdir(path / "run"))
    return path / "run"


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def imported(kind: str, folder: Path, tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a compiled model."""
    path = tmp_path_factory.mktemp("runs")
    return import_kind(kind, compiled(weights_of(kind, folder)), tiny_root, path)


def assert_close(actual: Any, expected: np.ndarray) -> None:
    """Relative to the largest value, with room for the rounding of the smallest."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual) / scale, expected / scale, rtol=RELATIVE, atol=RELATIVE / 10)


def trainer_of(config: ml_collections.ConfigDict, model: Model) -> Trainer:
    return Trainer.create(config, SpectrogramTask(model.spec, model.stats.mean.shape, config.data.min_std_db))


@partial(jax.jit, static_argnums=0)
def flow_outputs(graph: nnx.GraphDef, params: Any, mel_spec: Any, x: Any, t: Any, dropped: Any) -> Any:
    """Conditioning, and velocity."""
    model = nnx.merge(graph, params)
    z = model.encode(mel_spec)
    return z, model.velocity(x, t, z, dropped)


@partial(jax.jit, static_argnums=0)
def regression_outputs(graph: nnx.GraphDef, params: Any, mel_spec: Any) -> Any:
    return nnx.merge(graph, params)(mel_spec)


def assert_outputs_of_the_reference(kind: str, workdir: Path, reference: Arrays) -> None:
    model = Model.load(Workdir(workdir))
    graph, mel_spec = trainer_of(model.config, model).graph, reference["mel_spec"]
    if kind == "regression":
        assert_close(regression_outputs(graph, model.params, mel_spec), reference["prediction_surge_ffn"])
        return
    x, t, rows = reference["x"], reference["t"][:, 0], len(reference["x"])
    z, velocity = flow_outputs(graph, model.params, mel_spec, x, t, np.zeros(rows, bool))
    assert_close(z, reference["conditioning"])
    assert_close(velocity, reference["velocity_surge_mlp"])
    # Without the sound it stands for nothing but the token.
    _, unconditional = flow_outputs(graph, model.params, mel_spec, x, t, np.ones(rows, bool))
    _, same = flow_outputs(graph, model.params, np.zeros_like(mel_spec), x, t, np.ones(rows, bool))
    np.testing.assert_array_equal(unconditional, same)
    assert np.abs(unconditional - velocity).max() > 0.01 * np.abs(velocity).max()


def test_an_imported_model_gives_the_references_outputs(kind: str, imported: Path, reference: Arrays) -> None:
    assert_outputs_of_the_reference(kind, imported, reference)


def test_so_does_a_model_that_was_saved_without_compilation(
    kind: str, folder: Path, tiny_root: Path, tmp_path: Path, reference: Arrays, capsys: pytest.CaptureFixture
) -> None:
    weights = weights_of(kind, folder)
    workdir = import_kind(kind, weights, tiny_root, tmp_path)
    assert_outputs_of_the_reference(kind, workdir, reference)
    printed = capsys.readouterr().out
    title = {"mlp": "flow with MLP field", "regression": "regression"}[kind]
    assert f"a {title}, {len(weights)} weights after 7 steps" in printed
    assert "with 4 heads, which the weights do not hold" in printed


def test_the_workdir_holds_what_goes_with_the_model(imported: Path) -> None:
    config = json.loads((imported / "config.json").read_text(encoding="utf-8"))
    assert (config["model"]["encoder"]["swapped_padding"], config["data"]["min_std_db"]) == (True, 0.0)


def test_the_rows_of_a_sound_are_the_networks(kind: str, imported: Path, reference: Arrays) -> None:
    """From dB, through the statistics of the workdir, to rows in [0, 1]; one step of Euler for the flow."""
    model = Model.load(Workdir(imported), solver="euler", steps=1, guidance=1.0)
    mel = reference["mel_spec"] * np.asarray(model.stats.std) + np.asarray(model.stats.mean)
    x0 = reference["x"]
    rows = model.draw(mel, x0[:, None], batch_size=8)[:, 0]
    if kind == "regression":
        expected = reference["prediction_surge_ffn"]
    else:
        graph, nothing = trainer_of(model.config, model).graph, np.zeros(len(x0))
        inputs = standardise(mel, model.stats, 0.0)
        _, velocity = flow_outputs(graph, model.params, inputs, x0, nothing.astype(np.float32), nothing.astype(bool))
        expected = x0 + np.asarray(velocity)
    assert_close(2 * rows - 1, expected)


@pytest.mark.slow
def test_the_workdir_evaluates(kind: str, imported: Path, tmp_path: Path) -> None:
    result = run_cli("synthjax.evaluate", f"--workdir={imported}", "--split=test", f"--output={tmp_path}")
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["about"]["checkpoint"], metrics["count"]) == (0, 10)
    assert np.isfinite(metrics["metrics"]["prediction"]["mse"]["mean"])


def test_training_goes_on_from_the_imported_weights(kind: str, imported: Path, tiny_root: Path) -> None:
    """As train starts: the config is compared with the workdir's, and the whole state is restored."""
    config = config_for(kind, tiny_root, model__encoder__swapped_padding=True, data__min_std_db=0.0)
    run, model = Workdir(imported), Model.load(Workdir(imported), use_ema=False)
    run.prepare(config, json.loads(run.dataset.read_text(encoding="utf-8")), None, write=False)
    trainer = trainer_of(config, model)
    shardings = trainer.state_shardings(sharding.make_mesh(config.mesh))
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        state = TrainState.from_trees(checkpoints.restore(0, abstract_state(trainer, shardings).trees()))
    assert (int(state.step), int(state.bad_step)) == (0, -1)
    for tree in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, tree, model.params)


def refusal(kind: str, weights: Arrays, root: Path, path: Path, **changes: Any) -> str:
    """The message with which the import is refused; it leaves no file."""
    with pytest.raises(UserError) as error:
        import_kind(kind, weights, root, path, **changes)
    assert not (path / "run").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("held", "configured", "words"),
    [
        ("regression", "mlp", "regression: use --config=configs/regression.py (model.kind is flow, {} regression)"),
        ("regression", "vae", "regression: use --config=configs/regression.py (model.kind is flow_vae, {} regression)"),
        ("regression", "k_osc", "regression: use --config=configs/regression.py (data.source is k_osc, {} shards)"),
        (
            "mlp",
            "regression",
            "flow with MLP field: use --config=configs/flow_mlp.py (model.kind is regression, {} flow)",
        ),
        (
            "mlp",
            "transformer",
            "flow with MLP field: use --config=configs/flow_mlp.py (model.field.kind is transformer, {} mlp)",
        ),
        (
            "transformer",
            "mlp",
            "flow with Param2Tok: use --config=configs/flow_100k.py (model.field.kind is mlp, {} transformer)",
        ),
    ],
)
def test_a_config_of_another_model_is_told_which_fits(
    folder: Path, tiny_root: Path, tmp_path: Path, held: str, configured: str, words: str
) -> None:
    error = refusal(configured, weights_of(held, folder), tiny_root, tmp_path)
    assert error == f"the checkpoint is a {words.format('the weights need')}"


@pytest.mark.parametrize(
    ("kind", "changes", "misfits"),
    [
        (
            "mlp",
            {"model__field__dim": 64, "model__field__layers": 2, "model__field__time_features": 16},
            ["model.field.dim is 64, {} 48", "model.field.layers is 2, {} 3", "model.field.time_features is 16, {} 32"],
        ),
        (
            "mlp",
            {"model__encoder__dim": 48, "model__encoder__layers": 1, "model__encoder__stride": (16, 16)},
            [
                "model.encoder.dim is 48, {} 64",
                "model.encoder.layers is 1, {} 2",
                "model.encoder.stride is (16, 16), {} (10, 10)",
            ],
        ),
        (
            "regression",
            {
                "model__encoder__dim": 48,
                "model__encoder__layers": 1,
                "model__encoder__patch": (8, 16),
                "model__encoder__stride": (8, 8),
            },
            [
                "model.encoder.dim is 48, {} 64",
                "model.encoder.layers is 1, {} 2",
                "model.encoder.patch is (8, 16), {} (16, 16)",
                "model.encoder.stride is (8, 8), {} (10, 10)",
            ],
        ),
        ("regression", {"model__encoder__kind": "cnn"}, ["model.encoder.kind is cnn, {} ast"]),
    ],
)
def test_a_config_of_other_sizes_is_told_those_of_the_weights(
    folder: Path, tiny_root: Path, tmp_path: Path, kind: str, changes: dict[str, Any], misfits: list[str]
) -> None:
    error = refusal(kind, weights_of(kind, folder), tiny_root, tmp_path, **changes)
    expected = "; ".join(misfits).format(*["the weights need"] * len(misfits))
    assert error == f"the config does not fit: {expected}"


def zeros(**shapes: tuple[int, ...]) -> Arrays:
    """Weights by their names, with ``__`` for the dot."""
    return {name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("regression", zeros(ema__net__final_proj__bias=(92,)), "1 weights have no place in the model: ema.net.final"),
        ("regression", zeros(net__blocks__1__gate=(64,)), "1 weights have no place in the model: net.blocks.1.gate"),
        ("regression", zeros(net__embed_tokens=(1, 2, 64)), "there are 2 query tokens, not 1"),
        (
            "regression",
            zeros(net__final_proj__weight=(300, 64), net__final_proj__bias=(300,)),
            "the config does not fit: data.spec is surge_simple, the weights need surge_xt",
        ),
        (
            "regression",
            zeros(net__prediction_head__1__weight=(32, 64), net__prediction_head__1__bias=(32,)),
            "head.ff.up.bias is of shape (32,), not (64,)",
        ),
        ("mlp", zeros(net__final_proj__bias=(92,)), "1 weights have no place in the model: net.final_proj.bias"),
        ("mlp", zeros(vector_field__net__0__gate=(48,)), "1 weights have no place in the model: vector_field.net.0.g"),
        ("mlp", zeros(encoder__embed_tokens=(1, 1, 64)), "there are 1 query tokens, not 3"),
        (
            "mlp",
            zeros(vector_field__cfg_dropout_token=(1, 3, 64)),
            "weight vector_field.cfg_dropout_token has shape (1, 3, 64), whose first 2 axes are not of length 1",
        ),
        ("mlp", zeros(vector_field__time_encoding__basis=(1, 16)), "vector_field.time_encoding.basis has other freq"),
        (
            "mlp",
            zeros(vector_field__in_proj__weight=(48, 50)),
            "the config does not fit: data.spec is surge_simple, the weights need one of 50 columns",
        ),
        ("mlp", zeros(vector_field__out_proj__bias=(50,)), "field.read.bias is of shape (50,), not (92,)"),
    ],
)
def test_other_weights_are_refused(
    folder: Path, tiny_root: Path, tmp_path: Path, kind: str, changes: Arrays, words: str
) -> None:
    assert words in refusal(kind, weights_of(kind, folder) | changes, tiny_root, tmp_path)


def test_every_weight_is_needed(kind: str, folder: Path, tiny_root: Path, tmp_path: Path) -> None:
    """But for the frequencies of the time encoding, which are computed here."""
    weights = weights_of(kind, folder)
    # Without the weight that marks the kind, nothing can be said about the others.
    optional = {"vector_field.time_encoding.basis", "vector_field.in_proj.weight", "net.final_proj.weight"}
    needed = weights.keys() - optional
    assert len(needed) == len(weights) - {"mlp": 2, "regression": 1}[kind]
    for name in sorted(needed):
        rest = {key: array for key, array in weights.items() if key != name}
        assert f"weight {name} is missing" in refusal(kind, rest, tiny_root, tmp_path)


@pytest.mark.parametrize("name", ["param2tok", "equivariant", "mlp", "regression"])
@pytest.mark.parametrize("rename", [dict, compiled])
def test_a_checkpoint_of_the_k_osc_task_is_refused(
    folder: Path, tiny_root: Path, tmp_path: Path, name: str, rename: Any
) -> None:
    weights = rename(weights_of(f"k-osc {name}", folder))
    error = refusal("regression" if name == "regression" else "mlp", weights, tiny_root, tmp_path)
    assert re.fullmatch(
        r"the checkpoint holds a model of the k-osc task \(weight \S+\), which cannot be imported: train one with "
        r"--config=configs/k_osc\.py",
        error,
    )
