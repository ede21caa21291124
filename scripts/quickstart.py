"""From nothing to a prediction on this machine, with no plugin: what `make quickstart` runs.

    python scripts/quickstart.py [--samples=N]

Renders sounds of the built-in synthesizer, trains a small model on them, evaluates it and predicts the patch of a
held-out sound. Prints every command, so that you can run them yourself. Started again, it goes on where it stopped.
"""

from __future__ import annotations

import time
from pathlib import Path

import soundfile
from absl import flags

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.console import cli
from data_pipeline.console.cli import run_command
from data_pipeline.shards.reader import AUDIO, ShardReader

DATA = Path("data/quickstart")
RUN = Path("runs/quickstart")
SHARDS = 12
HELD_OUT = DATA / "held_out.wav"


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}")
    start = time.monotonic()
    for target, *arguments in stages():
        if code := run_command(target, arguments):
            return code
        if target == "data_pipeline.stats":
            _write_held_out_sound()
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes.")
    return 0


def stages() -> list[list[str]]:
    """The commands, as module or script and its arguments."""
    last = SHARDS - 1
    rows = -(-flags.FLAGS.samples // SHARDS)
    return [
        [
            "data_pipeline.render_shards",
            "--config=configs/render_subtractive.py",
            f"--output={DATA / 'shards'}",
            f"--shards=0-{last}",
            f"--samples_per_shard={rows}",
        ],
        [
            "data_pipeline.splits",
            str(DATA / "shards"),
            str(DATA),
            f"--train_shards=0-{last - 2}",
            f"--val_shards={last - 1}",
            f"--test_shards={last}",
        ],
        ["data_pipeline.stats", str(DATA)],
        ["data_pipeline.check", str(DATA)],
        ["synthjax.train", "--config=configs/quickstart.py", f"--workdir={RUN}"],
        ["synthjax.evaluate", f"--workdir={RUN}"],
        ["synthjax.predict", f"--workdir={RUN}", str(HELD_OUT), f"--output={RUN / 'predictions'}"],
        ["scripts/quickstart_summary.py", f"--workdir={RUN}"],
    ]


def _write_held_out_sound() -> None:
    """Writes the first sound of the test split as a sound file."""
    audio = ShardReader(DATA / "test.h5").read(AUDIO, 0)
    soundfile.write(HELD_OUT, audio.astype("float32").T, SAMPLE_RATE)


if __name__ == "__main__":
    flags.DEFINE_integer("samples", 8000, "Sounds to render, the held-out ones included.", lower_bound=1200)
    cli.run(main)
