"""Computes the statistics of the training spectrograms.

    python -m data_pipeline.stats DATA_ROOT

reads DATA_ROOT/train.h5 (or the .h5 file of a split) once, in bounded memory, and writes ``stats.npz`` beside it.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from data_pipeline.shards.mel_stats import STATS_FILE, compute_stats, save_stats
from data_pipeline.shards.reader import ShardReader


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    if len(argv) != 2:
        raise UserError("usage: python -m data_pipeline.stats DATA_ROOT [--allow_external]")
    source = Path(argv[1])
    split = source if source.suffix == ".h5" else source / "train.h5"
    if not split.exists():
        raise UserError(f"{split} does not exist: python -m data_pipeline.splits makes it")
    reader = ShardReader(split, allow_external=flags.FLAGS.allow_external)
    target = split.parent / STATS_FILE
    save_stats(target, compute_stats(reader))
    print(f"{target}: mean and std of {len(reader)} rows")


if __name__ == "__main__":
    flags.DEFINE_bool("allow_external", False, "Read shards that lie outside the parent of the data set's folder.")
    cli.run(main)
