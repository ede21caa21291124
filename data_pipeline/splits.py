"""Makes training, validation and test splits of shards.

    python -m data_pipeline.splits SOURCE TARGET --train_shards=0-9 --val_shards=10 --test_shards=11,12

writes TARGET/train.h5, val.h5 and test.h5: virtual datasets that map to SOURCE/shard-N.h5 by relative POSIX paths, so
that SOURCE and TARGET can move together. No row is copied. All named splits are written or none. TARGET may be SOURCE.
--val_shards and --test_shards are optional.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from data_pipeline.console import cli
from data_pipeline.console.cli import UserError, counted
from data_pipeline.shards.mel_stats import STATS_FILE
from data_pipeline.shards.splits import SPLITS, parse_shards, shard_ranges, write_splits
from data_pipeline.shards.virtual_sources import missing_sources


def main(argv: list[str]) -> None:
    """Entry point of the command."""
    if len(argv) != 3 or flags.FLAGS.train_shards is None:
        raise UserError(
            "usage: python -m data_pipeline.splits SOURCE TARGET --train_shards=0-9 "
            "[--val_shards=10] [--test_shards=11]"
        )
    chosen = {name: flags.FLAGS[f"{name}_shards"].value for name in SPLITS}
    splits = {name: parse_shards(text) for name, text in chosen.items() if text is not None}
    source, target = Path(argv[1]), Path(argv[2])
    rows = write_splits(source, target, splits)
    for name, numbers in splits.items():
        print(f"{target / name}.h5: {rows[name]} rows from {counted(len(numbers), 'shard')} ({shard_ranges(numbers)})")
    if missing_sources(target / "train.h5"):
        print(f"note: {source} lies outside the parent of {target}: readers of the splits need --allow_external")
    if (target / STATS_FILE).exists():
        (target / STATS_FILE).unlink()
        print(f"removed {target / STATS_FILE}: it belonged to the splits that were there before")
    print(f"next: python -m data_pipeline.stats {target}")


if __name__ == "__main__":
    for split in SPLITS:
        flags.DEFINE_string(f"{split}_shards", None, f"Shards of the {split} split, such as 0-3,7.")
        flags.DEFINE_alias(f"{split}-shards", f"{split}_shards")  # The flags' historic spelling.
    cli.run(main)
