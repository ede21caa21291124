"""Small reports to look at."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.params.spec import load_spec
from data_pipeline.synths.subtractive import Subtractive
from synthjax.report import Clip, Metric, MetricRow, ParameterRow, ReportWriter, SoundEntry

MSS = Metric("mss", "MSS", unit="dB")
RMS = Metric("rms", "RMS", higher_is_better=True)
METRICS = (MSS, RMS)
SUMMARY = (
    MetricRow(MSS, mean=3.18, low=3.11, high=3.25, median=2.9, count=1000, noise_floor=0.61, oracle=0.5),
    MetricRow(RMS, mean=0.948, low=0.941, high=0.955, median=0.961, count=1000),
)
PARAMETERS = (
    ParameterRow("Oscillator 1", "Shape", "saw", None, "square", None, 0.5),
    ParameterRow("Oscillator 1", "Level", "-6.0 dB", 0.5, "-5.0 dB", 0.58, 0.04),
    ParameterRow("Filter", "Cutoff", "40.0", 0.63, "20.0", 0.26, 0.2),
    ParameterRow("Oscillator 1", "Pan", "0.0", 0.5, "0.0", 0.5, 0.0),
)


def tone(frequency: float = 1000.0, level: float = 0.5, samples: int = 176400) -> NDArray[np.float32]:
    """A sine on both channels."""
    wave = level * np.sin(2.0 * np.pi * frequency * np.arange(samples) / 44100.0)
    return np.stack([wave, wave]).astype(np.float32)


def entry(name: str, mss: float = 1.0, rms: float = 0.9, samples: int = 4410, candidates: int = 2) -> SoundEntry:
    target = Clip("Target", tone(samples=samples))
    labels = ["Prediction", *(f"Candidate {place}" for place in range(2, candidates + 1))]
    clips = [Clip(label, tone(1500.0, samples=samples), {"mss": mss, "rms": rms}) for label in labels]
    return SoundEntry(name, target, clips[:candidates], PARAMETERS)


def rendered(name: str, row: int) -> SoundEntry:
    """Two patches of the built-in synthesizer, four seconds each."""
    spec = load_spec("subtractive")
    target, other = (Subtractive().render(spec.decode(each)) for each in spec.sample(1, [row, row + 1], [0, 0]))
    return SoundEntry(name, Clip("Target", target), [Clip("Prediction", other, {"mss": 5.0, "rms": 0.8})], PARAMETERS)


def write_report(
    path: Path, entries: Sequence[SoundEntry], expected: int | None = None, summary: Sequence[MetricRow] = SUMMARY
) -> Path:
    about = {"Model": "flow <20k>", "Seed": "0"}
    with ReportWriter(
        path, "A <b>report</b>", about, METRICS, len(entries) if expected is None else expected
    ) as report:
        for each in entries:
            report.add(each)
        report.finish(summary)
    return path


def embedded(path: Path, identifier: str) -> Any:
    """The value of one of the page's data elements."""
    page = path.read_text(encoding="utf-8")
    match = re.search(rf'<script type="application/json" id="{identifier}">(.*?)</script>', page)
    assert match is not None
    return json.loads(match.group(1))


def sound_script(path: Path) -> Any:
    """The value that a sound's script hands to the page."""
    match = re.fullmatch(r"receiveSound\(\d+,(.*)\);\n", path.read_text(encoding="ascii"))
    assert match is not None
    return json.loads(match.group(1))
