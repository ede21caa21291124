"""The workdir: its files, the runs that may go on in it, and errors on reading it."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.mel_stats import MelStats
from synthjax.configs import important
from synthjax.methods.sampling import Sampling
from synthjax.runs.check_config import check_config
from synthjax.runs.workdir import Workdir, fixed_digest
from tests.helpers import REPOSITORY

SHAPE = (2, 128, 401)
STATS = MelStats(np.full(SHAPE, -40, np.float32), np.full(SHAPE, 9, np.float32))
DATASET = {"rows": 100, "spec_hash": load_spec("surge_simple").content_hash, "first_rows_sha256": "ab" * 32}


@pytest.fixture
def config(tmp_path: Path, tiny_config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The tiny config on a data root of its own."""
    (tmp_path / "data").mkdir()
    tiny_config.data.root = str(tmp_path / "data")
    return tiny_config


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    return Workdir(tmp_path / "runs" / "first")


def content(workdir: Workdir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in workdir.path.iterdir()}


def test_a_prepared_workdir_gives_back_config_spec_and_statistics(
    workdir: Workdir, config: ml_collections.ConfigDict
) -> None:
    workdir.prepare(config, DATASET, STATS)
    assert sorted(content(workdir)) == ["config.json", "dataset.json", "spec.json", "stats.npz"]
    read = workdir.read_config()
    assert json.loads(json.dumps(read.to_dict())) == json.loads(json.dumps(config.to_dict()))
    assert read.model.field.tokens == 8
    assert workdir.read_spec() == load_spec("surge_simple")
    stats = workdir.read_stats()
    assert (stats.mean == -40).all()
    assert (stats.std == 9).all()
    assert json.loads(workdir.dataset.read_text()) == DATASET


def test_constructing_a_workdir_touches_nothing(workdir: Workdir) -> None:
    assert not workdir.path.exists()
    assert not workdir.path.parent.exists()


def test_the_same_run_goes_on(workdir: Workdir, config: ml_collections.ConfigDict) -> None:
    workdir.prepare(config, DATASET, STATS)
    before = content(workdir)
    workdir.prepare(config, DATASET, STATS)
    workdir.prepare(workdir.read_config(), DATASET, STATS)
    assert content(workdir) == before


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 7, "seed 0 -> 7"),
        ("data.spec", "surge_xt", "data.spec 'surge_simple' -> 'surge_xt'"),
        ("data.batch_size", 16, "data.batch_size 8 -> 16"),
        ("model.encoder.kind", "cnn", "model.encoder.kind 'ast' -> 'cnn'"),
        ("model.encoder.dim", 32, "model.encoder.dim 16 -> 32"),
        ("model.encoder.swapped_padding", True, "model.encoder.swapped_padding False -> True"),
        ("model.field.tokens", 4, "model.field.tokens 8 -> 4"),
        ("flow.coupling", False, "flow.coupling True -> False"),
        ("optim.name", "adamw", "optim.name 'adam' -> 'adamw'"),
    ],
)
def test_a_run_of_another_kind_is_refused_by_the_key_that_differs(
    workdir: Workdir, config: ml_collections.ConfigDict, key: str, value: object, said: str
) -> None:
    workdir.prepare(config, DATASET, STATS)
    before = content(workdir)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as refusal:
        workdir.prepare(config, DATASET, STATS)
    assert said in str(refusal.value)
    assert str(refusal.value).count("->") == 1
    assert str(workdir.path) in str(refusal.value)
    assert content(workdir) == before


def test_every_key_that_differs_is_named_at_once(workdir: Workdir, config: ml_collections.ConfigDict) -> None:
    workdir.prepare(config, DATASET, STATS)
    config.update_from_flattened_dict({"seed": 3, "model.field.layers": 5, "optim.lr": 1.0})
    with pytest.raises(UserError) as refusal:
        workdir.prepare(config, DATASET | {"rows": 99}, STATS)
    for said in ("seed 0 -> 3", "model.field.layers 2 -> 5", "rows 100 -> 99"):
        assert said in str(refusal.value)
    assert "optim.lr" not in str(refusal.value)


@pytest.mark.parametrize("key", DATASET)
def test_other_training_data_are_refused(workdir: Workdir, config: ml_collections.ConfigDict, key: str) -> None:
    workdir.prepare(config, DATASET, STATS)
    with pytest.raises(UserError, match=f"holds another run: training data's {key} .* -> 'other'"):
        workdir.prepare(config, DATASET | {key: "other"}, STATS)


def test_a_model_key_that_the_run_did_not_have_is_named(workdir: Workdir, config: ml_collections.ConfigDict) -> None:
    workdir.prepare(config, DATASET, STATS)
    config.model.field.extra = 3
    with pytest.raises(UserError, match=r"model\.field\.extra None -> 3"):
        workdir.prepare(config, DATASET, STATS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 123),
        ("train.log_every", 7),
        ("train.eval_every", 0),
        ("optim.lr", 5e-4),
        ("optim.clip_norm", 1.0),
        ("compute_dtype", "bfloat16"),
        ("data.workers", 4),
        ("data.allow_external", True),
        ("mesh.model", 2),
        ("mesh.fsdp", True),
        ("checkpoint.keep", 1),
        ("sampling.steps", 10),
        ("validation.rows", 8),
        ("wandb", True),
    ],
)
def test_a_run_may_go_on_otherwise_and_its_config_is_renewed(
    workdir: Workdir, config: ml_collections.ConfigDict, key: str, value: object
) -> None:
    workdir.prepare(config, DATASET, STATS)
    config.update_from_flattened_dict({key: value})
    workdir.prepare(config, DATASET, STATS)
    node = json.loads(workdir.config.read_text())
    for name in key.split("."):
        node = node[name]
    assert node == value


def test_a_run_goes_on_where_its_data_were_moved(
    tmp_path: Path, workdir: Workdir, config: ml_collections.ConfigDict
) -> None:
    workdir.prepare(config, DATASET, STATS)
    moved = (tmp_path / "data").rename(tmp_path / "moved")
    config.data.root = str(moved)
    workdir.prepare(config, DATASET, STATS)
    assert workdir.read_config().data.root == str(moved)


def test_processes_that_do_not_write_still_refuse(workdir: Workdir, config: ml_collections.ConfigDict) -> None:
    workdir.prepare(config, DATASET, STATS, write=False)
    assert not workdir.path.exists()
    workdir.prepare(config, DATASET, STATS)
    config.seed = 1
    with pytest.raises(UserError, match="seed 0 -> 1"):
        workdir.prepare(config, DATASET, STATS, write=False)


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path, config: ml_collections.ConfigDict) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        Workdir(tmp_path / "file").prepare(config, DATASET, STATS)


def test_config_is_read_as_data(workdir: Workdir, config: ml_collections.ConfigDict) -> None:
    workdir.prepare(config, DATASET, STATS)
    code = "__import__('pathlib').Path('hacked').touch()"
    data = json.loads(workdir.config.read_text())
    data["compute_dtype"] = code
    data["seed"] = {"py/object": "os.system", "py/reduce": [code]}
    workdir.config.write_text(json.dumps(data))
    read = workdir.read_config()
    assert read.compute_dtype == code
    assert read.seed["py/object"] == "os.system"
    assert not Path("hacked").exists()


def test_a_folder_without_a_run_is_refused(workdir: Workdir) -> None:
    with pytest.raises(UserError, match=r"no config\.json under .*first: give the --workdir of a training run"):
        workdir.read_config()


BROKEN = {
    "empty": b"",
    "cut short": b'{"seed": 0, "data": {"ro',
    "not utf-8": b'{"seed": "\xff"}',
    "a list": b"[1, 2]",
    "a number": b"3",
    "nested without end": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_config_is_refused_with_its_path(
    workdir: Workdir, config: ml_collections.ConfigDict, broken: bytes
) -> None:
    workdir.prepare(config, DATASET, STATS)
    workdir.config.write_bytes(broken)
    with pytest.raises(UserError, match=r"config\.json"):
        workdir.read_config()
    with pytest.raises(UserError, match=r"config\.json"):
        workdir.prepare(config, DATASET, STATS)
    assert workdir.config.read_bytes() == broken


def test_a_broken_or_missing_dataset_file_is_refused_with_its_path(
    workdir: Workdir, config: ml_collections.ConfigDict
) -> None:
    workdir.prepare(config, DATASET, STATS)
    workdir.dataset.write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json"):
        workdir.prepare(config, DATASET, STATS)
    workdir.dataset.unlink()
    with pytest.raises(UserError, match=r"dataset\.json"):
        workdir.prepare(config, DATASET, STATS)


def test_the_full_base_config_survives_the_round_trip(workdir: Workdir, config: ml_collections.ConfigDict) -> None:
    base = important.get_config()
    base.data.root = config.data.root
    workdir.prepare(base, DATASET, STATS)
    read = workdir.read_config()
    assert tuple(read.validation.times) == tuple(base.validation.times)
    assert tuple(read.sampling.guidance_interval) == base.sampling.guidance_interval
    types = lambda tree: {  # noqa: E731
        k: type(v) for k, v in tree.items() if not isinstance(v, (ml_collections.ConfigDict, tuple, list))
    }
    for section in ("data", "flow", "optim", "train", "sampling", "mesh"):
        assert types(read[section]) == types(base[section])


def test_a_run_of_an_earlier_version_is_read_and_goes_on(workdir: Workdir, config: ml_collections.ConfigDict) -> None:
    workdir.prepare(config, DATASET, STATS)
    earlier = json.loads(workdir.config.read_text())
    later = {
        "data": ("source", "cache", "corruption"),
        "train": ("accumulate", "remat"),
        "mesh": ("slices",),
        "sampling": ("guidance_interval", "tolerance"),
    }
    for section, names in later.items():
        for name in names:
            del earlier[section][name]
    del earlier["profile"], earlier["attention"]
    workdir.config.write_text(json.dumps(earlier))
    check_config(workdir.read_config())
    assert Sampling.from_config(workdir.read_config().sampling) == Sampling.from_config(config.sampling)
    workdir.prepare(config, DATASET, STATS)
    del earlier["train"]
    workdir.config.write_text(json.dumps(earlier))
    with pytest.raises(UserError, match="lacks a value"):
        check_config(workdir.read_config())


def test_the_digest_depends_on_the_fixed_keys_alone(config: ml_collections.ConfigDict) -> None:
    before = fixed_digest(config)
    config.train.steps += 1
    config.data.root = "elsewhere"
    assert fixed_digest(config) == before
    config.model.encoder.dim *= 2
    assert fixed_digest(config) != before


class TestHeld:
    """One run at a time writes to a folder."""

    @staticmethod
    def other_run(workdir: Workdir) -> subprocess.Popen:
        """A process that has the folder until it is given a line."""
        held = "with Workdir(sys.argv[1]).held(print): print(), input()"
        code = f"import sys\nfrom synthjax.runs.workdir import Workdir\n{held}"
        command = [sys.executable, "-uc", code, str(workdir.path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        return process

    def test_another_run_is_refused_while_one_lives(self, workdir: Workdir) -> None:
        with self.other_run(workdir) as process:
            said: list[str] = []
            with pytest.raises(UserError, match="another run writes to workdir"), workdir.held(said.append, patience=0):
                pass
            assert said == [f"another run writes to {workdir.path}: waiting for it to end"]
            process.kill()
        with workdir.held(pytest.fail):
            assert workdir.starts() == 0

    def test_one_that_ends_is_waited_for(self, workdir: Workdir) -> None:
        process = self.other_run(workdir)
        with workdir.held(lambda line: process.communicate(b"\n", timeout=100)):
            assert process.returncode == 0

    def test_a_start_is_noted_by_who_has_it(self, workdir: Workdir) -> None:
        with workdir.held(pytest.fail):
            workdir.note_start(0, 1)
        assert workdir.starts() == 1

    def test_a_file_system_without_locks_keeps_nobody_out(
        self, workdir: Workdir, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_locks(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", no_locks)
        with workdir.held(pytest.fail):
            pass

    def test_a_folder_that_cannot_be_written_is_refused(self, workdir: Workdir) -> None:
        workdir.starts_log.mkdir(parents=True)
        with pytest.raises(UserError, match=r"cannot write .*starts.jsonl: Is a directory"), workdir.held(pytest.fail):
            pass
