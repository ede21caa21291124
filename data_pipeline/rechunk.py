"""Converts older shards to the format in which reading a random row decompresses one small chunk.

    python -m data_pipeline.rechunk SOURCE TARGET [--spec=NAME]

SOURCE is a shard or a folder of shards (shard-N.h5) and is not changed. TARGET is the same for the new shards and may
not be SOURCE. Audio and parameters stay bit for bit, spectrograms are rounded to float16. Every new shard is read back
and compared with its source before it gets its name. After Ctrl-C, a crash or a full disk the same command continues;
finished shards are not made again. Attributes are those of the source, and the spec: --spec, else the spec that the
source names, else the only bundled spec of its width. Unknown attributes are left out.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from data_pipeline.shards.rechunk import rechunk


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    if len(argv) != 3:
        raise UserError("usage: python -m data_pipeline.rechunk SOURCE TARGET [--spec=NAME]")
    try:
        rows = rechunk(Path(argv[1]), Path(argv[2]), flags.FLAGS.spec)
    except KeyboardInterrupt:
        cli.fail("interrupted: what is converted is safe, the same command goes on", cli.INTERRUPTED)
    print(f"{argv[2]}: {rows} rows, equal to those of {argv[1]}")


if __name__ == "__main__":
    flags.DEFINE_string("spec", None, "Name or .json path of the parameter spec.")
    cli.run(main)
