"""Is the model better than guessing? python scripts/quickstart_summary.py --workdir=DIR

Draws patches from the posterior of held-out sounds and compares

- the parameter error of the mean of 16 draws with that of the training set's mean row, which ignores the sound;
- the sound of a single draw with a random training sound: their mean spectral distances (MSS) to the true sound.

A single draw is not judged by its parameters: a sample of the posterior carries twice the posterior's variance.
Oscillator columns are told apart from the others: oscillators may be swapped without a change of the sound, so that the
mean over all their orders is the best that any mean can be. Writes summary.json to the workdir.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from numpy.typing import NDArray

from data_pipeline import cli
from data_pipeline.atomic import atomic_path
from data_pipeline.audio_metrics import mss
from data_pipeline.param_spec import ParamSpec
from data_pipeline.progress import progress_bar
from data_pipeline.shards import AUDIO, MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.synths.protocol import SynthSettings, open_synth
from synthjax.data import PREDICT_NOISE, draw_noise
from synthjax.inference import TrainedModel
from synthjax.workdir import Workdir

DRAWS = 16
SOUNDS = 128
BASELINE_SEED = 0


def main(argv: list[str]) -> int:
    """Entry point of the command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}")
    workdir = Workdir(flags.FLAGS.workdir)
    model = TrainedModel.load(workdir)
    root = Path(model.config.data.root)
    train, test = ShardReader(root / "train.h5"), ShardReader(root / "test.h5")
    rows = np.arange(min(SOUNDS, len(test), len(train)))
    draws = posterior_draws(model, test.read_rows(MEL_SPEC, rows))
    true = test.read_rows(PARAM_ARRAY, rows)
    mean_row = train.read_rows(PARAM_ARRAY, np.arange(len(train))).mean(axis=0)
    summary: dict[str, Any] = {"sounds": len(rows), "checkpoint": model.step}
    summary["parameter_mse"] = parameter_errors(draws.mean(axis=1), np.tile(mean_row, (len(rows), 1)), true, model.spec)
    summary["mss"] = sound_distances(model.spec, draws[:, 0], train, test)
    with atomic_path(workdir.path / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print_summary(summary, workdir.path)
    return 0


def posterior_draws(model: TrainedModel, mel: NDArray[np.floating]) -> NDArray[np.float32]:
    """Draws (N, 16, W) for spectrograms (N, C, M, F), clipped to the columns' range [0, 1] as decoding clips them."""
    sounds, size = len(mel), model.batch_size(len(mel), DRAWS)
    noise = draw_noise(sounds * DRAWS, model.spec.width, PREDICT_NOISE, model.config.seed).reshape(sounds, DRAWS, -1)
    draws = []
    with progress_bar("drawing patches", sounds * DRAWS) as advance:
        for start in range(0, sounds, size):
            draws.append(model.draw(mel[start : start + size], noise[start : start + size], size))
            advance(draws[-1].shape[0] * DRAWS)
    return np.concatenate(draws).clip(0.0, 1.0)


def parameter_errors(
    predicted: NDArray[np.floating], baseline: NDArray[np.floating], true: NDArray[np.floating], spec: ParamSpec
) -> dict[str, dict[str, float]]:
    """Mean squared errors of rows (N, W) over all columns, the oscillators', and the others."""
    prefixes = tuple(prefix for group in spec.interchangeable for prefix in group)
    oscillators = np.array([name.startswith(prefixes) for name in spec.column_names])
    parts = {"all columns": np.ones_like(oscillators), "oscillator columns": oscillators, "other columns": ~oscillators}
    return {
        name: {
            "model": float(np.square(predicted - true)[:, columns].mean()),
            "guess": float(np.square(baseline - true)[:, columns].mean()),
        }
        for name, columns in parts.items()
    }


def sound_distances(
    spec: ParamSpec, rows: NDArray[np.floating], train: ShardReader, test: ShardReader
) -> dict[str, float]:
    """Mean MSS to the true sounds (the first N of the test split) of rows (N, W) rendered, and of random sounds."""
    synth = open_synth(SynthSettings(synth=spec.name, spec=spec))
    guesses = np.random.default_rng(BASELINE_SEED).permutation(len(train))[: len(rows)]
    model, guess = [], []
    with progress_bar("rendering", len(rows)) as advance:
        for index, row in enumerate(rows):
            target = test.read(AUDIO, index)
            model.append(mss(target, synth.render(spec.decode(row))))
            guess.append(mss(target, train.read(AUDIO, int(guesses[index]))))
            advance(1)
    return {"model": float(np.mean(model)), "guess": float(np.mean(guess))}


def print_summary(summary: dict[str, Any], workdir: Path) -> None:
    """The comparison as a table, and where the results lie."""
    print(f"\n{summary['sounds']} held-out sounds             model     guess     ratio (lower is better)")
    comparisons = {f"parameter MSE, {name}": pair for name, pair in summary["parameter_mse"].items()}
    for name, pair in (comparisons | {"sound, MSS in dB": summary["mss"]}).items():
        ratio = pair["model"] / pair["guess"]
        print(f"{name:<32}{pair['model']:>10.4f}{pair['guess']:>10.4f}{ratio:>10.3f}")
    print(f"\nThe model's parameters: the mean of {DRAWS} draws from the posterior; the guess: the training mean.")
    print("The model's sound: a single draw, rendered; the guess: a random training sound.")
    print(f"Checkpoints, logs, evaluation, predictions and summary.json: {workdir}")
    print(f"Curves: tensorboard --logdir {workdir}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
    cli.run(main)
