"""The folder of a run: what is in it, how it is read as data, and when a run may go on in it.

config.json      the full config          spec.json       the parameter spec
stats.npz        training statistics      dataset.json    which data the run is trained on
metrics.jsonl    one line a logged step   starts.jsonl    one line a start or restart
checkpoints/     tensorboard/

A run of the k-osc task has neither spec nor statistics.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import ml_collections

from data_pipeline.atomic import atomic_path, make_folder
from data_pipeline.cli import UserError
from data_pipeline.file_lock import try_lock
from data_pipeline.param_spec import ParamSpec, load_spec, spec_text
from data_pipeline.staging import local_root
from data_pipeline.stats import STATS_FILE, MelStats, load_stats

# How long a network file system may hold what a machine that died had locked.
LINGERING_SECONDS = 120.0

# Keys of the config that decide the arrays of the state or the order of the data. A run cannot change them; all
# else (where the data lie, how long to train, learning rate, logging, mesh, precision) it may.
FIXED_KEYS = (
    "seed",
    "data.source",
    "data.spec",
    "data.batch_size",
    "data.min_std_db",
    "model",
    "k_osc",
    "flow.coupling",
    "optim.name",
)


# Keys that configs did not always have, with what they meant then.
LATER_KEYS: dict[str, Any] = {
    "data.source": "shards",
    "data.cache": "none",
    "train.accumulate": 1,
    "train.remat": "elementwise",
    "mesh.slices": 1,
    "attention": "xla",
    "profile": "",
    "sampling.guidance_interval": (0.0, 1.0),
    # No earlier solver had one.
    "sampling.tolerance": 1e-4,
    # There was none, and short sounds at wrong times came first: the weights are no part of what a run has learnt.
    "ranking.rms": 10.0,
}


class Workdir:
    """Paths and files of one run. The constructor touches nothing.

    Args:
      checkpoints: where they lie, if not in the folder itself.
    """

    def __init__(self, path: str | Path, checkpoints: str | None = None) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.spec = self.path / "spec.json"
        self.stats = self.path / STATS_FILE
        self.dataset = self.path / "dataset.json"
        self.metrics = self.path / "metrics.jsonl"
        self.starts_log = self.path / "starts.jsonl"
        self.checkpoints = checkpoints or str(self.path / "checkpoints")
        self.tensorboard = self.path / "tensorboard"

    def prepare(self, config: ml_collections.ConfigDict, dataset: dict[str, Any], *, write: bool = True) -> None:
        """Starts a run here, or continues one whose config and data fit.

        Args:
          dataset: what identifies the training data, as JSON values.
          write: False on all processes but one.

        Raises:
          UserError: naming every key that differs, if the run here is another one.
        """
        started = self.config.exists()
        if started:
            self._refuse_another_run(config, dataset)
        if not write:
            return
        make_folder(self.path)
        shards = config.data.source == "shards"
        if not started:
            if shards:
                _write(self.spec, spec_text(config.data.spec))
                with atomic_path(self.stats) as stats:
                    shutil.copyfile(local_root(config.data.root) / STATS_FILE, stats)
            _write(self.dataset, json.dumps(dataset, indent=2) + "\n")
        # Written last: a folder with a config is a run.
        saved = config.copy_and_resolve_references()
        if shards and "://" not in saved.data.root:
            saved.data.root = os.path.abspath(saved.data.root)  # evaluate may be called from another folder.
        _write(self.config, json.dumps(saved.to_dict(), indent=2) + "\n")

    def _refuse_another_run(self, config: ml_collections.ConfigDict, dataset: dict[str, Any]) -> None:
        before, now = (
            _flatten(_with_later_keys(_read_json(self.config))),
            _flatten(json.loads(json.dumps(config.to_dict()))),
        )
        fixed = sorted(key for key in before.keys() | now.keys() if _is_fixed(key))
        changes = [f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in fixed if before.get(key) != now.get(key)]
        trained_on = _read_json(self.dataset)
        changes += [
            f"training data's {key} {trained_on.get(key)!r} -> {value!r}"
            for key, value in dataset.items()
            if trained_on.get(key) != value
        ]
        if changes:
            raise UserError(f"workdir {self.path} holds another run: {'; '.join(changes)}: choose another --workdir")

    @contextmanager
    def held(self, say: Callable[[str], object], patience: float = LINGERING_SECONDS) -> Iterator[None]:
        """Keeps other runs out of the folder, which is made: two would mix their checkpoints and logs.

        Waits for ``patience`` seconds where another has it, and says so. Raises UserError if it has it still.
        """
        make_folder(self.path)
        try:
            file = self.starts_log.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self.starts_log}: {error.strerror}") from error
        with file:
            if not _locked(file):
                say(f"another run writes to {self.path}: waiting for it to end")
                end = time.monotonic() + patience
                while not _locked(file):
                    if time.monotonic() >= end:
                        raise UserError(
                            f"another run writes to workdir {self.path}: stop that one, or choose another --workdir"
                        )
                    time.sleep(0.5)
            yield

    def note_start(self, step: int, processes: int) -> None:
        """Appends a line to starts.jsonl."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self.starts_log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "processes": processes, "time": now}) + "\n")

    def starts(self) -> int:
        """How often the run was started."""
        return len(self.starts_log.read_text(encoding="utf-8").splitlines()) if self.starts_log.exists() else 0

    def read_config(self) -> ml_collections.ConfigDict:
        """The run's config, read as data. Raises UserError where there is none."""
        if not self.config.is_file():
            raise UserError(f"no config.json under {self.path}: give the --workdir of a training run")
        try:
            return ml_collections.ConfigDict(_with_later_keys(_read_json(self.config)))
        except (AttributeError, TypeError, ValueError) as error:  # Names that no config key may have.
            raise UserError(f"{self.config} is not a config: {error}") from error

    def read_spec(self) -> ParamSpec:
        """The run's parameter spec."""
        return load_spec(str(self.spec))

    def read_stats(self) -> MelStats:
        """The statistics that the run's spectrograms are standardised with."""
        return load_stats(self.stats)


def _locked(file: IO[str]) -> bool:
    """As ``try_lock``; clusters have file systems without locks, where nobody keeps anybody out."""
    try:
        return try_lock(file)
    except OSError:
        return True


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_json(path: Path) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object")
    return data


def _with_later_keys(config: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version wrote, completed; a section that is missing altogether stays so."""
    for key, value in LATER_KEYS.items():
        section, _, name = key.rpartition(".")
        parent = config.get(section) if section else config
        if isinstance(parent, dict):
            parent.setdefault(name, value)
    return config


def fixed_digest(config: ml_collections.ConfigDict) -> str:
    """The SHA-256 of what a run never changes of its config, in hexadecimal digits: it tells one run from another."""
    flat = _flatten(json.loads(json.dumps(config.to_dict())))
    fixed = {key: value for key, value in flat.items() if _is_fixed(key)}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def _is_fixed(key: str) -> bool:
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED_KEYS)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat
