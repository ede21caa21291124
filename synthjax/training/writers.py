"""Writers of a run's figures, pictures and sounds: metrics.jsonl, TensorBoard and, on request, Weights & Biases.

Scalars depend on (seed, step) alone and go to all of them. Timings, pictures and sounds do not go to metrics.jsonl, so
that the file of a resumed run equals that of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from data_pipeline.console.append_log import append_json_line, read_json_lines
from data_pipeline.console.atomic import atomic_path, flushing
from data_pipeline.console.cli import UserError
from synthjax.runs.workdir import Workdir

Scalars = dict[str, float]
# Seconds that the server of Weights & Biases has to answer at the start of a run.
ANSWER_SECONDS = 20.0


class Writer:
    """A writer that drops everything. ``timings``, ``image`` and ``audio`` may be called from any thread."""

    def scalars(self, step: int, values: Scalars) -> None:
        """Writes figures that depend on (seed, step) alone."""

    def timings(self, step: int, values: Scalars) -> None:
        """Writes figures that differ from run to run."""

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes a picture (rows, columns, 3) uint8."""

    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        """Writes a sound (channels, samples) of floats."""

    def flush(self) -> None:
        """Returns when everything written is with the operating system or on disk."""

    def close(self) -> None:
        """Flushes and ends."""


class JsonLines(Writer):
    """metrics.jsonl: one JSON object a step, floats in full precision.

    Opening it for a run that goes on from ``start`` removes the lines after that step: the run writes them again.
    """

    def __init__(self, path: Path, start: int) -> None:
        kept = [entry for entry in read_json_lines(path) if entry.get("step", math.inf) <= start]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(f"{json.dumps(entry)}\n" for entry in kept), encoding="utf-8")
        self._path = path

    def scalars(self, step: int, values: Scalars) -> None:
        append_json_line(self._path, {"step": step, **values})

    def flush(self) -> None:
        pass  # Each line is on the disk already.

    def close(self) -> None:
        pass


def _within_full_scale(samples: np.ndarray) -> np.ndarray:
    """The samples, scaled down if they exceed full scale: players would clip them."""
    samples = samples.astype(np.float32)
    return samples / max(float(np.abs(samples).max()), 1.0)


class TensorBoard(Writer):
    """tensorboardX event files. TensorBoard hides figures after ``start`` that an earlier start wrote."""

    def __init__(self, path: Path, start: int, config_text: str) -> None:
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        path.mkdir(parents=True, exist_ok=True)
        self._summary, self._event = summary, Event
        # SummaryWriter would not do: its flush does not wait for its writing thread.
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
        with flushing():
            self._events.flush()

    def close(self) -> None:
        with flushing():
            self._events.close()


class WeightsAndBiases(Writer):
    """A Weights & Biases run that belongs to the workdir and goes on when the workdir's run goes on.

    It is optional: if it fails, a warning says so, and the training run goes on without it.

    Args:
      logged: the last step of an earlier start that was logged; steps up to it are not logged again.
    """

    def __init__(self, path: Path, config: dict[str, Any], logged: int) -> None:
        self._logged = logged
        self._run: Any = None
        try:
            self._start(path, config)
        except ImportError as error:
            raise UserError("config.wandb needs the package wandb: pip install 'synthjax[wandb]'") from error
        except Exception as error:  # No key, no network, a file or another module that is called wandb.
            self._give_up(error)

    def _start(self, path: Path, config: dict[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        _require_answer(wandb.setup().settings)
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
        self._log(step, lambda: values)

    def timings(self, step: int, values: Scalars) -> None:
        self.scalars(step, values)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._log(step, lambda: {name: self._wandb.Image(pixels)})

    def audio(self, step: int, name: str, samples: np.ndarray, sample_rate: int) -> None:
        sound = _within_full_scale(samples).T
        self._log(step, lambda: {name: self._wandb.Audio(sound, sample_rate=sample_rate)})

    def close(self) -> None:
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                self._give_up(error)

    def _log(self, step: int, values: Callable[[], Mapping[str, Any]]) -> None:
        if self._run is not None and step > self._logged:
            try:
                self._run.log({"step": step, **values()})
            except Exception as error:  # A full disk, a service that ended.
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        why = " ".join(str(error).split())
        print(f"warning: Weights & Biases stops, the run goes on without it: {why}", file=sys.stderr, flush=True)


def _require_answer(settings: Any) -> None:
    """Waits until the server of Weights & Biases answers: without one, ``wandb.init`` tries for hours.

    Args:
      settings: those of wandb, which hold the environment's.

    Raises:
      OSError: if the server does not answer within ``ANSWER_SECONDS``.
    """
    if settings.mode in ("offline", "disabled", "dryrun"):
        return
    import requests  # wandb needs it too.

    given = {"http": settings.http_proxy, "https": settings.https_proxy}
    proxies = {scheme: proxy for scheme, proxy in given.items() if proxy}  # For the others, those of the environment.
    end = time.monotonic() + ANSWER_SECONDS
    while (left := end - time.monotonic()) > 0:
        try:
            # Any page will do. wandb tries again after an error of the server, even for hours.
            if requests.head(f"{settings.base_url}/graphql", proxies=proxies, timeout=left).status_code < 500:
                return
            reason = "has an error"
        except (requests.exceptions.SSLError, requests.exceptions.InvalidSchema):
            return  # wandb may know more certificates and kinds of proxies.
        except (requests.ConnectionError, requests.Timeout):
            reason = "does not answer"
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    raise OSError(
        f"{settings.base_url} {reason}: for runs without network set WANDB_MODE=offline, and use wandb sync afterwards"
    )


class Writers(Writer):
    """All writers of a run as one."""

    def __init__(self, writers: list[Writer]) -> None:
        self._writers = writers

    @classmethod
    def open(cls, workdir: Workdir, config: ml_collections.ConfigDict, start: int, *, write: bool = True) -> Writers:
        """The writers of a run that starts or goes on at ``start``; none with ``write=False``.

        Raises:
          UserError: if the config asks for Weights & Biases and its package is missing.
        """
        if not write:
            return cls([])
        logged = max((entry.get("step", 0) for entry in read_json_lines(workdir.metrics)), default=0)
        text = json.dumps(config.to_dict(), indent=2)
        writers: list[Writer] = [JsonLines(workdir.metrics, start), TensorBoard(workdir.tensorboard, start, text)]
        if config.wandb:
            writers.append(WeightsAndBiases(workdir.path, config.to_dict(), logged))
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
            with suppress(OSError):  # On a full disk, the write before has raised the same error already.
                writer.close()
