"""Writes a report sound by sound: ``report.html`` and, for many sounds, the folder ``report_files`` beside it.

With up to 50 sounds, the page holds everything. With more, the page holds names and metrics only; every sound has a
folder with its audio, its pictures and ``sound.js``, which the page loads when the sound is selected. It is a script
because a page that was opened from disk may load nothing else.
"""

from __future__ import annotations

import base64
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import quote

from data_pipeline.audio.spectrogram import DYNAMIC_RANGE_DB
from data_pipeline.console.atomic import atomic_path, make_folder
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why
from synthjax.report import media
from synthjax.report.content import (
    Clip,
    Metric,
    MetricRow,
    SoundEntry,
    metric_json,
    metric_values,
    parameter_groups_json,
    summary_json,
)
from synthjax.report.page import data_element, page_halves, script_json

MAX_EMBEDDED_SOUNDS = 50


class ReportWriter:
    """Writes one report. It replaces an earlier one at ``path`` in ``finish``, and not before.

        with ReportWriter(path, "Predictions", {"model": "flow_20k"}, metrics, expected_sounds=3) as report:
            report.add(entry)
            report.finish(summary)

    Memory holds one sound at a time, and the names and metrics of all.

    Args:
      about: texts under the title, by name.
      metrics: the columns of the list of sounds.
      expected_sounds: decides between one file and a folder.

    Raises:
      UserError: for a file that cannot be written, here and in the methods.
    """

    def __init__(
        self, path: Path, title: str, about: Mapping[str, str], metrics: Sequence[Metric], expected_sounds: int
    ) -> None:
        self.path = path
        self._title = title
        self._about = dict(about)
        self._metrics = tuple(metrics)
        self._names: list[str] = []
        self._values: list[list[float | None]] = []
        self._files_name = None if expected_sounds <= MAX_EMBEDDED_SOUNDS else f"{path.stem}_files"
        self._staging = path.with_name(f".{path.name}.{os.getpid()}.parts")
        self._files = self._staging / "files"
        make_folder(self._files)
        with self._writing():
            self._embedded: BinaryIO = (self._staging / "embedded").open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # A full disk: ``finish`` or ``add`` has raised the same error already.
            self._embedded.close()
        shutil.rmtree(self._staging, ignore_errors=True)

    def add(self, entry: SoundEntry) -> None:
        """Writes one sound. Raises ValueError for a clip with a metric that the report does not have."""
        number = len(self._names)
        clips = (entry.target, *entry.candidates)
        values = [metric_values(clip, self._metrics) for clip in clips]
        with self._writing():
            details = {
                **self._store_clips(number, clips, values),
                "notes": list(entry.notes),
                "groups": parameter_groups_json(entry.parameters),
            }
            if self._files_name is None:
                self._embedded.write(data_element(f"sound-{number}", details))
            else:
                script = f"receiveSound({number},{script_json(details)});\n"
                self._put(number, "sound.js", script.encode("ascii"), "text/javascript")
        self._names.append(entry.name)
        self._values.append(values[1] if entry.candidates else values[0])

    def finish(self, summary: Sequence[MetricRow] = ()) -> None:
        """Writes the page; it and its folder replace those of an earlier report."""
        index = {
            "about": list(self._about.items()),
            "metrics": [metric_json(metric) for metric in self._metrics],
            "summary": [summary_json(row) for row in summary],
            "names": self._names,
            "values": self._values,
            "files": None if self._files_name is None else quote(self._files_name),
            "palette": media.palette(),
            "range": DYNAMIC_RANGE_DB,
            "ticks": media.frequency_ticks(),
        }
        before, after = page_halves(self._title)
        with self._writing(), atomic_path(self.path) as temporary:
            with temporary.open("wb") as page:
                page.write(before)
                page.write(data_element("index", index))
                self._embedded.seek(0)
                shutil.copyfileobj(self._embedded, page)
                page.write(after)
            if self._files_name is not None:
                self._replace_folder(self.path.with_name(self._files_name))

    def _store_clips(self, number: int, clips: Sequence[Clip], values: Sequence[list[float | None]]) -> dict[str, Any]:
        """Stores the audio and pictures of one sound's clips; returns the clips as the page's script reads them."""
        sounds = [clip.audio for clip in clips if clip.audio is not None]
        gain = media.common_gain(sounds)
        pictures = iter(media.spectrograms(sounds))
        rows = []
        for place, (clip, numbers) in enumerate(zip(clips, values, strict=True)):
            row: dict[str, Any] = {"label": clip.label, "metrics": numbers, "audio": None, "image": None}
            if clip.audio is not None:
                stem = f"candidate-{place}" if place else "target"
                row["audio"] = self._put(number, f"{stem}.flac", media.flac(clip.audio * gain), "audio/flac")
                row["image"] = self._put(number, f"{stem}.png", next(pictures), "image/png")
            rows.append(row)
        longest = max((sound.shape[1] for sound in sounds), default=0)
        return {"clips": rows, "span": media.time_span(longest), "gain": round(20.0 * math.log10(gain), 1)}

    def _put(self, number: int, name: str, content: bytes, kind: str) -> str:
        """Stores one file of a sound; returns its URL, relative to the page."""
        if self._files_name is None:
            return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
        folder = self._files / f"{number:05d}"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        return f"{quote(self._files_name)}/{folder.name}/{name}"

    def _replace_folder(self, target: Path) -> None:
        """Replaces the folder of an earlier report. Renaming keeps the time without a folder short."""
        if target.exists():
            target.rename(self._staging / "replaced")
        self._files.rename(target)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {why(error)}") from error
