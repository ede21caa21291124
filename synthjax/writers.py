"""Where a run's numbers and pictures go: metrics.jsonl, TensorBoard, and Weights & Biases on request.

Scalars that depend on (seed, step) alone go everywhere. Timings, and whatever else differs from run to run, go
everywhere but to metrics.jsonl, so that this file of a resumed run equals that of an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import ml_collections
import numpy as np

from data_pipeline.cli import UserError

Scalars = dict[str, float]


class Writer(Protocol):
    """One destination. ``timings``, ``image`` and ``audio`` may be called from any thread."""

    def scalars(self, step: int, values: Scalars) -> None:
        """Figures that are a function of (seed, step)."""
        ...

    def timings(self, step: int, values: Scalars) -> None:
        """Figures of this machine and moment."""
        ...

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture (rows, columns, 3) uint8."""
        ...

    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        """A sound (channels, samples) of floats."""
        ...

    def flush(self) -> None:
        """Returns when everything written is with the operating system or beyond."""
        ...

    def close(self) -> None:
        """Flushes and ends."""
        ...


class JsonLines:
    """metrics.jsonl: a JSON object a step, floats in full precision.

    Opening it for a run that continues at ``start`` drops the lines after that step: they will be written again.
    """

    def __init__(self, path: Path, start: int) -> None:
        kept = [line for line in _lines(path) if _step_of(line) <= start]
        temporary = path.with_name(f".{path.name}.partial")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def scalars(self, step: int, values: Scalars) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def timings(self, step: int, values: Scalars) -> None:
        pass

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        pass

    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        pass

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # A line cut short by a kill.


def _within_full_scale(samples: np.ndarray) -> np.ndarray:
    """A sound as it is, or made as quiet as it must be for players not to clip it."""
    samples = samples.astype(np.float32)
    return samples / max(float(np.abs(samples).max()), 1.0)


class TensorBoard:
    """tensorboardX event files; figures after ``start`` of an earlier session are hidden."""

    def __init__(self, path: Path, start: int, config_text: str) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        path.mkdir(parents=True, exist_ok=True)
        self._summary, self._event = summary, Event
        # Not SummaryWriter: its flush does not wait for the queue to its writing thread.
        self._events = EventsWriter(str(path / "events"), filename_suffix=f".{start}")
        session = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=start + 1, session_log=session))
        self._write(start, summary.text("config", f"```json\n{config_text}\n```"))

    def _write(self, step: int, summary: Any) -> None:
        self._events.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def scalars(self, step: int, values: Scalars) -> None:
        for name, value in values.items():
            self._write(step, self._summary.scalar(name, value))

    def timings(self, step: int, values: Scalars) -> None:
        self.scalars(step, values)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._write(step, self._summary.image(name, pixels, dataformats="HWC"))

    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        self._write(step, self._summary.audio(name, _within_full_scale(samples).T, sample_rate))

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class WeightsAndBiases:
    """A W&B run kept in the workdir; continuing the workdir continues the run."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("config.wandb needs the package wandb: pip install 'synthjax[wandb]'") from error
        self._wandb = wandb
        identity = path / "wandb_id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            project="synthjax",
            name=path.name,
            dir=str(path),
            id=identity.read_text(encoding="utf-8").strip(),
            resume="allow",
            config=config,
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Scalars) -> None:
        self._run.log({"step": step, **values})

    def timings(self, step: int, values: Scalars) -> None:
        self.scalars(step, values)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._run.log({"step": step, name: self._wandb.Image(pixels)})

    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        self._run.log({"step": step, name: self._wandb.Audio(_within_full_scale(samples).T, sample_rate=sample_rate)})

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._run.finish()


class Writers:
    """All destinations of a run as one."""

    def __init__(self, writers: list[Writer]) -> None:
        self._writers = writers

    @classmethod
    def open(cls, workdir: Any, config: ml_collections.ConfigDict, start: int) -> Writers:
        """The writers of a run that begins or continues at ``start``."""
        text = json.dumps(config.to_dict(), indent=2)
        writers: list[Writer] = [JsonLines(workdir.metrics, start), TensorBoard(workdir.tensorboard, start, text)]
        if config.wandb:
            writers.append(WeightsAndBiases(workdir.path, config.to_dict()))
        return cls(writers)

    def scalars(self, step: int, values: Scalars) -> None:
        for writer in self._writers:
            writer.scalars(step, values)

    def timings(self, step: int, values: Scalars) -> None:
        for writer in self._writers:
            writer.timings(step, values)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        for writer in self._writers:
            writer.image(step, name, pixels)

    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        for writer in self._writers:
            writer.audio(step, name, samples, sample_rate)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            with suppress(OSError):  # A full disk, told when it was written to.
                writer.close()
