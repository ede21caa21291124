"""The report of ``synthjax.evaluate --render``: predictions from the best to the worst, beside their targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tensorboardX import SummaryWriter

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.console.progress import progress_bar
from data_pipeline.render.patch_renderer import PatchRenderer
from synthjax.evaluation.audio import Measured, Predictions, as_stored, load_targets
from synthjax.evaluation.table import ORACLE, PREDICTION, Table
from synthjax.report import Clip, ReportWriter, SoundEntry
from synthjax.report.entries import AUDIO_METRICS, described, metric_rows, parameter_rows, spread_evenly
from synthjax.training import plots

# Sounds in TensorBoard: as many as a person listens to.
TENSORBOARD_SOUNDS = 8
RENDERED_AT_ONCE = 16


def write_evaluation_report(
    output: Path,
    predictions: Predictions,
    results: Sequence[Measured],
    table: Table,
    renderer: PatchRenderer,
    most: int,
) -> None:
    """Writes report.html and TensorBoard's events to ``output``; their sounds are rendered once more.

    Args:
      results: the measurements of each prediction.
      table: the summary of ``results``.
      most: the number of sounds at most, spread evenly from the best to the worst.
    """
    rendered = [index for index, measured in enumerate(results) if PREDICTION in measured]
    if not rendered:
        return
    errors = np.array([results[index][PREDICTION]["mss"] for index in rendered])
    shown = [rendered[place] for place in spread_evenly(errors, most)]
    extent = f"{len(shown)} of {len(results)} sounds, evenly from the best to the worst; rendered again to be played"
    about = described({**table.about, "shown": extent})
    pictured = {shown[place] for place in np.linspace(0, len(shown) - 1, TENSORBOARD_SOUNDS).round().astype(int)}
    with (
        progress_bar("writing the report", len(shown)) as advance,
        ReportWriter(output / "report.html", "Evaluation", about, AUDIO_METRICS, len(shown)) as report,
        SummaryWriter(str(output / "tensorboard")) as board,
    ):
        for first in range(0, len(shown), RENDERED_AT_ONCE):
            part = shown[first : first + RENDERED_AT_ONCE]
            patches = renderer.render((index, predictions.rows[index]) for index in part)
            sounds = {patch.key: as_stored(patch.audio) for patch in patches if patch.audio is not None}
            target_of = load_targets(predictions, renderer, part)
            for index in part:
                target, audio = target_of(index), sounds.get(index)
                report.add(_entry(predictions, index, target, audio, results[index]))
                if index in pictured and audio is not None and target is not None:
                    _to_tensorboard(board, table.about["checkpoint"], predictions.names[index], target, audio)
                advance(1)
        report.finish(metric_rows(table.metrics))


def _entry(
    predictions: Predictions,
    index: int,
    target: NDArray[np.float32] | None,
    audio: NDArray[np.float32] | None,
    measured: Measured,
) -> SoundEntry:
    true = None if predictions.true is None else predictions.true[index]
    notes = []
    if ORACLE in measured:
        notes.append(f"The true patch rendered again has an MSS of {measured[ORACLE]['mss']:.2f} dB.")
    prediction = Clip("Prediction", audio, measured[PREDICTION])
    rows = parameter_rows(predictions.spec, predictions.rows[index], true=true)
    return SoundEntry(predictions.names[index], Clip("Target", target), [prediction], rows, notes)


def _to_tensorboard(
    board: SummaryWriter, step: int, name: str, target: NDArray[np.float32], audio: NDArray[np.float32]
) -> None:
    for label, sound in (("target", target), ("prediction", audio)):
        peak = max(float(np.abs(sound).max()), 1.0)  # Its players clip.
        board.add_audio(f"{name}/{label}", (sound / peak).T, step, SAMPLE_RATE)
    pixels = plots.spectrograms({"target": mel_spectrogram(target), "prediction": mel_spectrogram(audio)})
    board.add_image(name, pixels, step, dataformats="HWC")
