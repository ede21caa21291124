"""Is the model better than guessing? python scripts/quickstart_summary.py --workdir=DIR

Draws patches from the posterior of held-out sounds and compares

- the parameter error of the mean of 16 draws with the error of the training set's mean row;
- the sound of a single draw with a random training sound, by their spectral distances (MSS) to the true sound.

A single draw is not judged by its parameters: its error is twice the posterior's variance. The oscillators' columns are
listed apart: oscillators may be swapped without a change of the sound, so that no answer has a lower error there than
the mean over all orders. Writes summary.json to the workdir.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags
from numpy.typing import NDArray

from data_pipeline.audio.metrics import mss
from data_pipeline.console import cli
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.spec import ParamSpec
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.synths.choice import open_synth
from data_pipeline.synths.protocol import SynthSettings
from synthjax.evaluation.table import PREDICTION, Table, print_table, tabulate, write_table
from synthjax.methods.examples import PREDICT_NOISE, draw_noise
from synthjax.runs.model import Model
from synthjax.runs.workdir import Workdir

DRAWS = 16
SOUNDS = 128
BASELINE_SEED = 0
GUESS = "guess"


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}")
    workdir = Workdir(flags.FLAGS.workdir)
    model = Model.load(workdir)
    root = Path(model.config.data.root)
    train, test = ShardReader(root / "train.h5"), ShardReader(root / "test.h5")
    rows = np.arange(min(SOUNDS, len(test), len(train)))
    draws = posterior_draws(model, test.read_rows(MEL_SPEC, rows))
    true = test.read_rows(PARAM_ARRAY, rows)
    mean_row = train.read_rows(PARAM_ARRAY, np.arange(len(train))).mean(axis=0)
    predicted, guessed = sound_distances(model.spec, draws[:, 0], train, test)
    figures = {
        PREDICTION: parameter_errors(draws.mean(axis=1), true, model.spec) | {"mss": predicted},
        GUESS: parameter_errors(mean_row, true, model.spec) | {"mss": guessed},
    }
    table = tabulate({"checkpoint": model.step}, len(rows), figures)
    write_table(workdir.path / "summary.json", table)
    print_summary(table, workdir.path)
    return 0


def posterior_draws(model: Model, mel: NDArray[np.floating]) -> NDArray[np.float32]:
    """Draws (N, 16, W) for spectrograms (N, C, M, F), clipped to the columns' range [0, 1] as decoding clips them."""
    sounds = len(mel)
    noise = draw_noise(sounds * DRAWS, model.spec.width, PREDICT_NOISE, model.config.seed).reshape(sounds, DRAWS, -1)
    with progress_bar("drawing patches", sounds) as advance:
        return model.draw(mel, noise, advance=advance).clip(0.0, 1.0)


def parameter_errors(
    predicted: NDArray[np.floating], true: NDArray[np.floating], spec: ParamSpec
) -> dict[str, NDArray[np.floating]]:
    """Mean squared errors (N,) of rows (N, W) or one row (W,), over all columns, the oscillators', and the others."""
    prefixes = tuple(prefix for group in spec.interchangeable for prefix in group)
    oscillators = np.array([name.startswith(prefixes) for name in spec.column_names])
    parts = {"mse": np.ones_like(oscillators), "mse, oscillators": oscillators, "mse, others": ~oscillators}
    errors = np.square(predicted - true)
    return {name: errors[:, columns].mean(axis=1) for name, columns in parts.items()}


def sound_distances(
    spec: ParamSpec, rows: NDArray[np.floating], train: ShardReader, test: ShardReader
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """MSS (N,) of rows (N, W) rendered, and of random training sounds, to the first N sounds of the test split."""
    synth = open_synth(SynthSettings(synth=spec.name, spec=spec))
    guesses = np.random.default_rng(BASELINE_SEED).permutation(len(train))[: len(rows)]
    distances = []
    with progress_bar("rendering", len(rows)) as advance:
        for index, row in enumerate(rows):
            target, guess = test.read(AUDIO, index), train.read(AUDIO, int(guesses[index]))
            distances.append((mss(target, synth.render(spec.decode(row))), mss(target, guess)))
            advance(1)
    predicted, guessed = np.array(distances).T
    return predicted, guessed


def print_summary(table: Table, workdir: Path) -> None:
    """Prints the comparison, and where the results lie."""
    print("\nHeld-out sounds; lower is better.")
    print_table(table)
    print("\nThe prediction's mean as a share of the guess's:")
    for name, one in table.metrics[PREDICTION].items():
        print(f"{name:<36}{one.mean / table.metrics[GUESS][name].mean:>10.3f}")
    print(
        f"\nParameters (mse): the mean of {DRAWS} draws from the posterior; the guess is the mean of the training rows."
    )
    print("Sound (mss in dB): one draw, rendered; the guess is a random training sound.")
    print(f"Checkpoints, logs, evaluation, predictions and summary.json: {workdir}")
    print(f"Curves: tensorboard --logdir {workdir}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
    cli.run(main)
