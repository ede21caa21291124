"""Adaptation: a model trained further on recordings, and a run that begins with the weights of a bundle."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline.audio.sound_files import wav
from data_pipeline.console.cli import UserError
from data_pipeline.params.counter_rng import TEST_SEED
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.choice import open_synth, synth_for
from synthjax.adapt import copied, require_same, split
from synthjax.runs.bundles import read_bundle
from synthjax.runs.model import Model
from synthjax.runs.workdir import Workdir
from tests.helpers import assert_usage_error, run_cli

SPEC = load_spec("dexed")
SMALL = {
    "data.batch_size": 16,
    "data.reuse": 4,
    "model.field.dim": 32,
    "model.field.layers": 1,
    "model.encoder.dim": 16,
    "model.encoder.layers": 1,
    "validation.rows": 32,
    "validation.sampled_rows": 8,
    "train.steps": 60,
    "train.eval_every": 60,
    "checkpoint.every": 60,
    "optim.warmup_steps": 5,
}


def train(workdir: Path, *flags: str) -> None:
    result = run_cli("synthjax.train", f"--workdir={workdir}", *flags)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of Dexed."""
    folder = tmp_path_factory.mktemp("adapt")
    values = [f"--config.{name}={value}" for name, value in SMALL.items()]
    train(folder / "run", "--config=configs/quickstart.py", *values)
    path = folder / "model.zip"
    assert run_cli("synthjax.bundle", "export", path, f"--workdir={folder / 'run'}").returncode == 0
    return path


def test_the_split_depends_on_names_alone() -> None:
    paths = [Path(f"folder/{number}.wav") for number in range(10)]
    learnt, held_out = split(paths)
    assert len(held_out) == 3
    assert sorted(learnt + held_out) == paths
    again = split([Path("elsewhere") / path.name for path in reversed(paths)])
    assert [path.name for path in again[1]] == [path.name for path in held_out]
    with pytest.raises(UserError, match="two recordings"):
        split(paths[:1])


def test_recordings_of_one_name_are_copied_apart(tmp_path: Path) -> None:
    for folder, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "kick.wav").write_bytes(content)
    paths = [tmp_path / "a" / "kick.wav", tmp_path / "b" / "kick.wav"]
    copied(paths, tmp_path / "all")
    assert sorted(path.read_bytes() for path in (tmp_path / "all").iterdir()) == [b"1", b"2"]
    with pytest.raises(UserError, match="other recordings"):
        copied(paths[:1], tmp_path / "all")


def test_a_folder_has_one_adaptation(tmp_path: Path) -> None:
    require_same(tmp_path / "settings.json", {"bundle": "a", "steps": 3})
    require_same(tmp_path / "settings.json", {"bundle": "a", "steps": 3})
    with pytest.raises(UserError, match="an adaptation with another bundle: choose another --workdir"):
        require_same(tmp_path / "settings.json", {"bundle": "b", "steps": 3})


def test_a_bundle_without_a_model_begins_no_run(tmp_path: Path) -> None:
    flags = ("--config=configs/quickstart.py", "--config.start_from=dexed", f"--workdir={tmp_path / 'run'}")
    assert_usage_error(run_cli("synthjax.train", *flags), "start_from=dexed holds no model")


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    """A step of a learning rate of 0 changes nothing."""
    frozen = [f"--config.{name}={value}" for name, value in {"optim.lr": 0.0, "optim.final_lr": 0.0}.items()]
    train(tmp_path / "run", f"--config=configs/adapted.py:{bundle}", "--config.train.steps=60", *frozen)
    base, workdir = read_bundle(str(bundle)), Workdir(tmp_path / "run")
    np.testing.assert_array_equal(workdir.read_stats().mean, base.stats().mean)
    expected, found = Model.of_bundle(base), Model.load(workdir, use_ema=False)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    other = ["--config=configs/flow_dexed.py", f"--config.start_from={bundle}", "--config.validation.rows=8"]
    result = run_cli("synthjax.train", *other, f"--workdir={tmp_path / 'other'}")
    assert result.returncode == 2
    assert "the weights do not fit the config" in result.stderr


@pytest.mark.slow
def test_recordings_are_learnt_from_in_rounds(bundle: Path, tmp_path: Path) -> None:
    folder, synth = tmp_path / "recordings", open_synth(synth_for(SPEC))
    folder.mkdir()
    for number, row in enumerate(SPEC.sample(TEST_SEED, range(4), [0] * 4)):
        (folder / f"{number}.wav").write_bytes(wav(synth.render(SPEC.decode(row))))
    flags = [f"--bundle={bundle}", f"--output={tmp_path / 'new.zip'}", f"--workdir={tmp_path / 'work'}"]
    flags += ["--rounds=1", "--steps=60", "--refine_evaluations=0"]
    result = run_cli("synthjax.adapt", folder, *flags)
    assert result.returncode == 0, result.stderr
    assert "3 recordings are learnt from, 1 are held out" in result.stdout
    errors = [float(line.split()[-1]) for line in result.stdout.splitlines() if line.startswith("round ")]
    assert len(errors) == 2
    better = errors[1] < errors[0]
    assert (tmp_path / "new.zip").exists() == better
    assert better or "no round betters" in result.stdout
    assert not better or read_bundle(str(tmp_path / "new.zip")).config().start_from == str(bundle)
