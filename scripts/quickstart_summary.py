"""Is the model better than guessing? python scripts/quickstart_summary.py --workdir=DIR --shard=SHARD

Draws one patch from the posterior of every sound of a shard, which the model has not seen, renders it, and compares its
sound with another sound of the shard by their spectral distances (MSS) to the true sound. Writes summary.json to the
workdir.
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
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, ShardReader
from data_pipeline.synths.choice import open_synth, synth_for
from synthjax.evaluation.table import PREDICTION, Table, print_table, tabulate, write_table
from synthjax.methods.examples import PREDICT_NOISE, draw_noise
from synthjax.runs.model import Model
from synthjax.runs.workdir import Workdir

GUESS = "guess"


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}")
    workdir, shard = Workdir(flags.FLAGS.workdir), ShardReader(Path(flags.FLAGS.shard))
    model = Model.load(workdir)
    rows = posterior_draws(model, shard.read_rows(MEL_SPEC, np.arange(len(shard))))
    predicted, guessed = sound_distances(model.spec, rows, shard)
    figures = {
        PREDICTION: {"mss": predicted},
        GUESS: {"mss": guessed},
        "difference": {"mss": predicted - guessed},
    }
    table = tabulate({"checkpoint": model.step}, len(rows), figures)
    write_table(workdir.path / "summary.json", table)
    print_summary(table)
    return 0


def posterior_draws(model: Model, mel: NDArray[np.floating]) -> NDArray[np.float32]:
    """One draw each (N, W) for spectrograms (N, C, M, F), clipped to the columns' range [0, 1] as decoding clips it."""
    noise = draw_noise(len(mel), model.spec.width, PREDICT_NOISE, model.config.seed)
    with progress_bar("drawing patches", len(mel)) as advance:
        return model.draw(mel, noise[:, None], advance=advance)[:, 0].clip(0.0, 1.0)


def sound_distances(
    spec: ParamSpec, rows: NDArray[np.floating], shard: ShardReader
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """MSS (N,) to the N sounds of the shard: of rows (N, W) rendered, and of each sound's neighbour in the shard."""
    synth = open_synth(synth_for(spec))
    distances = []
    with progress_bar("rendering", len(rows)) as advance:
        for index, row in enumerate(rows):
            target, guess = shard.read(AUDIO, index), shard.read(AUDIO, (index + 1) % len(rows))
            distances.append((mss(target, synth.render(spec.decode(row))), mss(target, guess)))
            advance(1)
    predicted, guessed = np.array(distances).T
    return predicted, guessed


def print_summary(table: Table) -> None:
    """Prints the comparison."""
    print("\nSounds that the model has not seen: spectral distance (mss) in dB; lower is better.")
    print_table(table)
    print("\nPrediction: one draw from the posterior, rendered. Guess: another of the sounds.")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the training run.", required=True)
    flags.DEFINE_string("shard", None, "A shard of sounds that the model has not seen.", required=True)
    cli.run(main)
