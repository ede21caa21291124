"""What ``synthjax.evaluate --render`` does and writes, once there are predictions."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboardX import SummaryWriter

from data_pipeline.atomic import atomic_path
from data_pipeline.audio_metrics import METRICS
from data_pipeline.mel import mel_spectrogram
from data_pipeline.param_spec import ParamSpec
from data_pipeline.patch_renderer import PatchRenderer
from data_pipeline.progress import progress_bar
from data_pipeline.synths.protocol import SAMPLE_RATE
from synthjax import plots
from synthjax.audio_evaluation import NOISE_FLOOR, ORACLE, PREDICTION, AudioEvaluation, Measured, as_stored, by_metric
from synthjax.param_metrics import summarise
from synthjax.report import Clip, ReportWriter, SoundEntry
from synthjax.report_entries import AUDIO_METRICS, described, metric_row, parameter_rows, spread_evenly

MEASUREMENTS = "measurements.partial"
# Sounds that TensorBoard gets: as many as one listens to.
TENSORBOARD_SOUNDS = 8


@dataclass(frozen=True)
class Evaluated:
    """N predictions: rows (N, W) of a spec for named targets, with the targets' true rows where they are known.

    ``target`` gives the audio (2, T) of an index.
    """

    spec: ParamSpec
    names: Sequence[str]
    predicted: NDArray[np.floating]
    target: Callable[[int], NDArray[np.floating]]
    true: NDArray[np.floating] | None


def evaluate_sounds(
    evaluated: Evaluated,
    renderer: PatchRenderer,
    output: Path,
    about: Mapping[str, Any],
    row_metrics: Mapping[str, NDArray[np.floating]],
    report_sounds: int,
) -> None:
    """Renders, measures and reports; started again it goes on. ``row_metrics`` (N,) are told in per_sample.csv too."""
    identity = {**about, "spec_hash": evaluated.spec.content_hash}
    targets = lambda index: evaluated.target(index).astype(np.float32)  # noqa: E731
    measuring = AudioEvaluation(output / MEASUREMENTS, identity, evaluated.predicted, evaluated.true, targets)
    try:
        missing = len(measuring.missing)
        if missing < len(evaluated.names):
            print(f"{len(evaluated.names) - missing} of {len(evaluated.names)} sounds were measured before")
        with progress_bar("rendering and measuring", missing) as advance:
            measuring.run(renderer, advance)
        results = measuring.results()
    except KeyboardInterrupt:
        done = len(evaluated.names) - len(measuring.missing)
        told = f"{done} of {len(evaluated.names)} sounds are measured; the same command goes on from there"
        print(told, file=sys.stderr)
        raise
    finally:
        measuring.close()
    _write_metrics(output / "metrics.json", about, results)
    _write_samples(output / "per_sample.csv", evaluated.names, row_metrics, results)
    _write_report(evaluated, renderer, output, about, results, report_sounds)
    print(f"wrote metrics.json, per_sample.csv, report.html and tensorboard/ to {output}")


def _write_metrics(path: Path, about: Mapping[str, Any], results: Sequence[Measured]) -> None:
    """Adds the audio metrics to what is known of the parameters, and prints them."""
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else dict(about)
    failed = sum(PREDICTION not in measured for measured in results)
    audio: dict[str, Any] = {"count": len(results) - failed, "not_rendered": failed}
    print(f"{'sound':<24}{'mean':>10}   95 % interval        median     n = {len(results) - failed}")
    for kind in (PREDICTION, ORACLE, NOISE_FLOOR):
        audio[kind] = {}
        for name, values in by_metric(results, kind).items():
            mean, low, high = summarise(values)
            audio[kind][name] = {"mean": mean, "ci95": [low, high], "median": float(np.median(values))}
            print(f"{name + ', ' + kind:<24}{mean:>10.5f}   {low:.5f} .. {high:.5f}   {np.median(values):.5f}")
    if failed:
        print(f"predicted patches that could not be rendered: {failed}")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**metrics, "audio": audio}, indent=2) + "\n", encoding="utf-8")


def _write_samples(
    path: Path,
    names: Sequence[str],
    row_metrics: Mapping[str, NDArray[np.floating]],
    results: Sequence[Measured],
) -> None:
    kinds = [kind for kind in (PREDICTION, ORACLE, NOISE_FLOOR) if any(kind in measured for measured in results)]
    columns = [(kind, metric) for kind in kinds for metric in METRICS]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        heard = [metric if kind == PREDICTION else f"{metric}_{kind}" for kind, metric in columns]
        writer.writerow(["index", "name", *row_metrics, *heard])
        for index, (name, measured) in enumerate(zip(names, results, strict=True)):
            numbers = [repr(float(values[index])) for values in row_metrics.values()]
            numbers += [repr(measured[kind][metric]) if kind in measured else "" for kind, metric in columns]
            writer.writerow([index, name, *numbers])


def _write_report(
    evaluated: Evaluated,
    renderer: PatchRenderer,
    output: Path,
    about: Mapping[str, Any],
    results: Sequence[Measured],
    count: int,
) -> None:
    """report.html and TensorBoard's events: sounds from the best to the worst, rendered once more to be heard."""
    heard = [index for index, measured in enumerate(results) if PREDICTION in measured]
    if not heard:
        return
    places = spread_evenly(np.array([results[index][PREDICTION]["mss"] for index in heard]), count)
    shown = [heard[place] for place in places]
    kinds = {kind: by_metric(results, kind) for kind in (PREDICTION, NOISE_FLOOR, ORACLE)}
    summary = [
        metric_row(
            metric,
            kinds[PREDICTION][metric.key],
            noise_floor=kinds[NOISE_FLOOR].get(metric.key),
            oracle=kinds[ORACLE].get(metric.key),
        )
        for metric in AUDIO_METRICS
    ]
    extent = f"{len(shown)} of {len(results)} sounds, evenly from the best to the worst; rendered again to be heard"
    shown_about = described({**about, "shown": extent})
    pictured = {shown[place] for place in np.linspace(0, len(shown) - 1, TENSORBOARD_SOUNDS).round().astype(int)}
    with (
        progress_bar("writing the report", len(shown)) as advance,
        ReportWriter(output / "report.html", "Evaluation", shown_about, AUDIO_METRICS, len(shown)) as report,
        SummaryWriter(str(output / "tensorboard")) as board,
    ):
        for first in range(0, len(shown), 16):
            part = shown[first : first + 16]
            patches = renderer.render((index, evaluated.predicted[index]) for index in part)
            sounds = {patch.key: as_stored(patch.audio) for patch in patches if patch.audio is not None}
            for index in part:
                target, audio = evaluated.target(index).astype(np.float32), sounds.get(index)
                report.add(_entry(evaluated, index, target, audio, results[index]))
                if index in pictured and audio is not None:
                    _to_tensorboard(board, about["checkpoint"], evaluated.names[index], target, audio)
                advance(1)
        report.finish(summary)


def _entry(
    evaluated: Evaluated,
    index: int,
    target: NDArray[np.float32],
    audio: NDArray[np.float32] | None,
    measured: Measured,
) -> SoundEntry:
    true = None if evaluated.true is None else evaluated.true[index]
    notes = []
    if ORACLE in measured:
        notes.append(f"The true patch rendered again has an MSS of {measured[ORACLE]['mss']:.2f} dB.")
    prediction = Clip("Prediction", audio, measured[PREDICTION])
    rows = parameter_rows(evaluated.spec, evaluated.predicted[index], true=true)
    return SoundEntry(evaluated.names[index], Clip("Target", target), [prediction], rows, notes)


def _to_tensorboard(
    board: SummaryWriter, step: int, name: str, target: NDArray[np.float32], audio: NDArray[np.float32]
) -> None:
    for label, sound in (("target", target), ("prediction", audio)):
        peak = max(float(np.abs(sound).max()), 1.0)  # Its players clip.
        board.add_audio(f"{name}/{label}", (sound / peak).T, step, SAMPLE_RATE)
    pixels = plots.spectrograms({"target": mel_spectrogram(target), "prediction": mel_spectrogram(audio)})
    board.add_image(name, pixels, step, dataformats="HWC")
