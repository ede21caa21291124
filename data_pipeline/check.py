"""Checks whether a data set is fit to train on.

    python -m data_pipeline.check PATH... [--spec=NAME]

PATH is the folder of a data set, a split or a shard. In a folder its splits are checked, and the shards that no split
maps. Every file must open, be complete and have all its sources. Every row must be finite and not all zero;
spectrograms must lie within -80..0 dB, sounds, where stored, be audible, parameters lie in [0, 1] with valid one-hot
groups. The spec is --spec, else the spec that a file names, else the bundled spec of its width. Prints one line for
each fault; exits with 1 if there was any.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from data_pipeline.shards.check import check_paths

FAULTS_FOUND = 1


def main(argv: list[str]) -> int:
    """Entry point of the command."""
    if len(argv) < 2:
        raise UserError("usage: python -m data_pipeline.check PATH... [--spec=NAME] [--allow_external]")
    paths = [Path(argument) for argument in argv[1:]]
    rows, without_audio, lines = check_paths(paths, flags.FLAGS.spec, allow_external=flags.FLAGS.allow_external)
    for line in lines:
        print(line)
    if without_audio:
        print(f"{without_audio} of {rows} rows have no audio to check")
    if not lines:
        print(f"{rows} rows: no faults")
    return FAULTS_FOUND if lines else 0


if __name__ == "__main__":
    flags.DEFINE_string("spec", None, "Name or .json path of the parameter spec.")
    flags.DEFINE_bool("allow_external", False, "Read shards that lie outside the parent of the data set's folder.")
    cli.run(main)
