"""The folder of a run: its files, and the checks before another run goes on in it.

config.json      the full config          spec.json       the parameter spec
stats.npz        training statistics      dataset.json    identity of the training data
metrics.jsonl    one line a logged step   starts.jsonl    one line a start or restart
checkpoints/     tensorboard/

A run of the k-osc task has neither spec nor statistics.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import ml_collections

from data_pipeline.console.append_log import append_json_line, read_json_lines
from data_pipeline.console.atomic import atomic_path, make_folder
from data_pipeline.console.cli import UserError
from data_pipeline.console.file_lock import try_lock
from data_pipeline.console.os_errors import why
from data_pipeline.params.spec import ParamSpec, load_spec, spec_text
from data_pipeline.shards.mel_stats import STATS_FILE, MelStats, load_stats, save_stats

# Seconds for which a network file system may keep the lock of a machine that died.
LINGERING_SECONDS = 120.0

# Config keys that decide the arrays of the state or the order of the data. A run cannot change them. It may change all
# others, such as the data's folder, the number of steps, learning rate, logging, mesh and precision.
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

# Config keys that earlier versions did not have, and the values that describe their behaviour.
LATER_KEYS: dict[str, Any] = {
    "data.source": "shards",
    "data.cache": "none",
    "data.corruption": {},
    "train.accumulate": 1,
    "train.remat": "elementwise",
    "mesh.slices": 1,
    "attention": "xla",
    "profile": "",
    "sampling.guidance_interval": (0.0, 1.0),
    "sampling.tolerance": 1e-4,  # Earlier solvers had none.
}


class Workdir:
    """Paths and files of one run. The constructor reads and writes nothing.

    Args:
      checkpoints: folder or URL of the checkpoints; default: ``checkpoints`` in the folder.
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

    def prepare(
        self, config: ml_collections.ConfigDict, dataset: dict[str, Any], stats: MelStats | None, *, write: bool = True
    ) -> None:
        """Starts a run in the folder, or checks that the run in it may go on with this config and data.

        Args:
          dataset: the identity of the training data, as JSON values.
          stats: the statistics of the training data; None if there are none.
          write: False on all processes but one.

        Raises:
          UserError: if the folder holds another run; names every key that differs.
        """
        started = self.config.exists()
        if started:
            self._refuse_another_run(config, dataset)
        if not write:
            return
        make_folder(self.path)
        if not started:
            if stats is not None:
                _write(self.spec, spec_text(config.data.spec))
                save_stats(self.stats, stats)
            _write(self.dataset, json.dumps(dataset, indent=2) + "\n")
        # Written last: a folder with a config.json counts as a run.
        saved = config.copy_and_resolve_references()
        if config.data.source == "shards" and "://" not in saved.data.root:
            saved.data.root = os.path.abspath(saved.data.root)  # evaluate may run in another folder.
        if saved.data.get("prior"):
            saved.data.prior = os.path.abspath(saved.data.prior)
        _write(self.config, json.dumps(saved.to_dict(), indent=2) + "\n")

    def _refuse_another_run(self, config: ml_collections.ConfigDict, dataset: dict[str, Any]) -> None:
        before, now = _fixed_values(_with_later_keys(_read_json(self.config))), _fixed_values(config.to_dict())
        keys = sorted(before.keys() | now.keys())
        changes = [f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)]
        begun, asked = _read_json(self.config).get("start_from", ""), config.get("start_from", "")
        if begun != asked:
            changes.append(f"start_from {begun!r} -> {asked!r}")
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
        """Makes and locks the folder: two runs in it would mix their checkpoints and logs.

        If another run has the lock, prints so through ``say`` and waits for at most ``patience`` seconds.

        Raises:
          UserError: if another run still has the lock, or the folder cannot be written.
        """
        make_folder(self.path)
        try:
            file = self.starts_log.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self.starts_log}: {why(error)}") from error
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
        append_json_line(self.starts_log, {"step": step, "processes": processes, "time": now})

    def starts(self) -> int:
        """The number of starts of the run so far."""
        return len(read_json_lines(self.starts_log))

    def read_config(self) -> ml_collections.ConfigDict:
        """The run's config, from config.json; no Python code is run. Raises UserError if it cannot be read."""
        if not self.config.is_file():
            raise UserError(f"no config.json under {self.path}: give the --workdir of a training run")
        return config_of(_read_json(self.config), str(self.config))

    def read_spec(self) -> ParamSpec:
        """The run's parameter spec."""
        return load_spec(str(self.spec))

    def read_stats(self) -> MelStats:
        """The statistics by which the run standardises spectrograms."""
        return load_stats(self.stats)


def _locked(file: IO[str]) -> bool:
    """Locks a file as ``try_lock`` does; True too on file systems without locks, which some clusters have."""
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
        raise UserError(f"{path} cannot be read: {why(error)}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object")
    return data


def config_of(content: dict[str, Any], name: str) -> ml_collections.ConfigDict:
    """The config that a config.json called ``name`` holds. Raises UserError for what is no config."""
    try:
        return ml_collections.ConfigDict(_with_later_keys(content))
    except (AttributeError, TypeError, ValueError) as error:  # Keys that a ConfigDict does not allow.
        raise UserError(f"{name} is not a config: {error}") from error


def _with_later_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Adds ``LATER_KEYS`` to the config of an earlier version, in the sections that it has."""
    for key, value in LATER_KEYS.items():
        section, _, name = key.rpartition(".")
        parent = config.get(section) if section else config
        if isinstance(parent, dict):
            parent.setdefault(name, value)
    return config


def fixed_digest(config: ml_collections.ConfigDict) -> str:
    """The SHA-256, in hexadecimal digits, of the config values that a run never changes. It identifies the run."""
    return hashlib.sha256(json.dumps(_fixed_values(config.to_dict()), sort_keys=True).encode()).hexdigest()


def _fixed_values(config: dict[str, Any]) -> dict[str, Any]:
    """The values under ``FIXED_KEYS`` by dotted key, as JSON has them: tuples become lists."""
    flat = _flatten(json.loads(json.dumps(config)))
    return {key: value for key, value in flat.items() if any(f"{key}.".startswith(f"{fixed}.") for fixed in FIXED_KEYS)}


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat
