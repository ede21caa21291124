"""From sounds to patches for the DX7 on this machine: what `make quickstart` runs.

    python scripts/quickstart.py

Renders sounds of Dexed and answers them from the library that ships with synthjax. Then trains a small model on sounds
that are rendered meanwhile, and compares it with the library and with random patches. Prints every command, so that you
can run them yourself. Started again, it goes on where it stopped.
"""

from __future__ import annotations

import time
from pathlib import Path

from data_pipeline.audio.sound_files import wav
from data_pipeline.console import cli
from data_pipeline.console.atomic import make_folder
from data_pipeline.console.cli import run_command
from data_pipeline.params.counter_rng import TEST_SEED
from data_pipeline.shards.reader import AUDIO, ShardReader

DATA, RUN = Path("data/quickstart"), Path("runs/quickstart")
SOUNDS, ANSWERS, COMPARISON = DATA / "sounds", RUN / "answers", RUN / "comparison"
# Sounds that are answered from the library, and those that all ways of answering are compared on.
ANSWERED, COMPARED = 4, 8


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) > 1:
        raise cli.UserError(f"unexpected argument {argv[1]!r}")
    start = time.monotonic()
    for target, *arguments in stages():
        if code := run_command(target, arguments):
            return code
        if target == "data_pipeline.render_shards":
            _write_sounds()
        if target == "synthjax.predict":
            print(f"\nAfter {time.monotonic() - start:.0f} s: {ANSWERS}/banks/1.syx, for Dexed, a DX7 or its clones.")
            print(f"Each sound beside its answers: {ANSWERS}/report.html")
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes. The comparison: {COMPARISON}/report.html")
    return 0


def stages() -> list[list[str]]:
    """The commands, as module or script and its arguments."""
    drawn = ["--config=configs/render_dexed.py", "--shards=0", f"--samples_per_shard={ANSWERED}"]
    return [
        ["data_pipeline.render_shards", *drawn, f"--output={DATA}", f"--seed={TEST_SEED}"],
        ["synthjax.predict", str(SOUNDS), "--bundle=dexed", "--refine_evaluations=200", f"--output={ANSWERS}"],
        ["synthjax.train", "--config=configs/quickstart.py", f"--workdir={RUN}"],
        [
            "synthjax.evaluate",
            "--targets=drawn",
            f"--rows={COMPARED}",
            "--candidates=16",
            f"--workdir={RUN}",
            "--bundle=dexed",
            f"--output={COMPARISON}",
        ],
    ]


def _write_sounds() -> None:
    """Writes the sounds of the shard as sound files."""
    make_folder(SOUNDS)
    reader = ShardReader(DATA / "shard-0.h5")
    for number in range(ANSWERED):
        (SOUNDS / f"sound_{number}.wav").write_bytes(wav(reader.read(AUDIO, number).astype("float32")))


if __name__ == "__main__":
    cli.run(main)
