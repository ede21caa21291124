"""Measures answers beside published ones: python -m scripts.benchmarks.published --published=FOLDER --answers=FOLDER

--published holds NAME_target.flac and NAME_vae.flac at 22.05 kHz, the sounds of Le Vaillant, Dutoit and Dekeyser,
"Improving synthesizer programming from variational autoencoders latent space" (DAFx 2021). --answers is the output of

    python -m synthjax.predict FOLDER/*_target.flac --output=ANSWERS

All sounds are resampled to 22.05 kHz and back to 44.1 kHz before they are compared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from absl import flags
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.audio.metrics import METRICS, measure
from data_pipeline.audio.sound_files import load_sound
from data_pipeline.console import cli
from synthjax.evaluation.table import print_table, tabulate
from synthjax.evaluation.ways import differences

FLAGS = flags.FLAGS
TARGET, PUBLISHED = "_target.flac", "_vae.flac"


def main(argv: list[str]) -> None:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}: published takes flags only")
    targets = sorted(Path(FLAGS.published).glob(f"*{TARGET}"))
    if not targets:
        raise cli.UserError(f"--published={FLAGS.published} holds no *{TARGET}")
    measured: dict[str, list[dict[str, float]]] = {"published": [], "answers": []}
    for path in targets:
        theirs = path.with_name(path.name.replace(TARGET, PUBLISHED))
        ours = Path(FLAGS.answers) / f"{path.stem}.wav"
        target, *sounds = (at_22_khz(load_sound(one).audio) for one in (path, theirs, ours))
        for kind, sound in zip(measured, sounds, strict=True):
            measured[kind].append(measure(target, sound))
    figures: Any = {
        kind: {name: np.array([one[name] for one in values]) for name in METRICS} for kind, values in measured.items()
    }
    table = tabulate({}, len(targets), figures)
    print_table(table)
    print("\ndifferences, paired by target")
    print_table(replace(table, metrics=differences(figures)))


def at_22_khz(audio: NDArray[np.floating]) -> NDArray[np.floating]:
    """A sound (2, T) at 44.1 kHz without what 22.05 kHz cannot hold."""
    half = soxr.resample(audio.T, SAMPLE_RATE, SAMPLE_RATE // 2)
    return np.asarray(soxr.resample(half, SAMPLE_RATE // 2, SAMPLE_RATE).T[:, : audio.shape[1]])


if __name__ == "__main__":
    flags.DEFINE_string("published", None, "Folder of the published sounds.", required=True)
    flags.DEFINE_string("answers", None, "Output folder of predict on their targets.", required=True)
    cli.run(main)
