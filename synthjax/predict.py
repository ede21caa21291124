"""Predicts the patch behind a sound: python -m synthjax.predict --workdir=DIR sound.wav --output=DIR

Writes NAME.json with a value for every parameter of the synthesizer, the pitch and the note's times.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from data_pipeline import cli
from data_pipeline.atomic import atomic_path, make_folder
from data_pipeline.audio_io import load_sound
from data_pipeline.mel import mel_spectrogram
from data_pipeline.stats import STATS_FILE, load_stats
from synthjax import model_flags, sharding
from synthjax.data import PREDICT_NOISE, draw_noise
from synthjax.inference import TrainedModel
from synthjax.workdir import Workdir


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) != 2:
        raise cli.UserError("give one sound file: python -m synthjax.predict --workdir=DIR sound.wav --output=DIR")
    f, sound = flags.FLAGS, Path(argv[1])
    loaded = load_sound(sound)
    for note in loaded.notes:
        print(f"{sound.name}: {note}")
    model = TrainedModel.load(Workdir(f.workdir), checkpoint=f.checkpoint, use_ema=f.use_ema)
    if f.data_root:
        _check_statistics(model, Path(f.data_root) / STATS_FILE)
    prediction = {"sound": str(sound), "checkpoint": model.step, **predict(model, loaded.audio)}
    output = Path(f.output)
    make_folder(output)
    with atomic_path(output / f"{sound.stem}.json") as path:
        path.write_text(json.dumps(prediction, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {output / f'{sound.stem}.json'}")
    return 0


def _check_statistics(model: TrainedModel, path: Path) -> None:
    """A sound is standardised as the training data were; other statistics would be another model's."""
    if any((mine != theirs).any() for mine, theirs in zip(model.stats, load_stats(path), strict=True)):
        raise cli.UserError(f"{path} is not what this model was trained with: leave out --data_root")


def predict(model: TrainedModel, audio: np.ndarray) -> dict[str, Any]:
    """The patch that a model hears in audio (2, 176400) at 44.1 kHz, as JSON values.

    ``parameters`` are raw values, ``labels`` the names of categories, ``row`` the sampled columns in [0, 1].
    """
    spec, parts = model.spec, model.mesh.shape[sharding.DATA]
    mel = mel_spectrogram(audio)
    noise = draw_noise(1, spec.width, PREDICT_NOISE, model.config.seed)
    batch = {"mel_spec": np.repeat(mel[None], parts, axis=0), "x0": np.repeat(noise, parts, axis=0)}
    row = model.sample(batch)[0]
    values = spec.decode(row)
    notes = {parameter.name: values.pop(parameter.name) for parameter in spec.note_params}
    return {
        "spec": spec.name,
        "parameters": values,
        "labels": spec.labels(values),
        **notes,
        "row": [float(column) for column in row],
    }


if __name__ == "__main__":
    model_flags.define()
    flags.DEFINE_string("output", "predictions", "Folder for the results; made if missing.")
    cli.run(main)
