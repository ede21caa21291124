"""From nothing to a bank of patches for the DX7 on this machine: what `make quickstart` runs.

    python scripts/quickstart.py

Trains a small model on sounds of Dexed that are rendered meanwhile, renders sounds that the model has not seen, and
answers them with patches. Prints every command, so that you can run them yourself. Started again, it goes on where it
stopped.
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

DATA = Path("data/quickstart")
RUN = Path("runs/quickstart")
SHARD = DATA / "shard-0.h5"
SOUNDS = DATA / "sounds"
# Sounds to measure, and those of them that are answered with patches.
HELD_OUT, ANSWERED = 64, 8


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
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes.")
    print(f"The patches: {RUN}/predictions/banks/1.syx, for Dexed, a DX7 or its clones.")
    print(f"Each sound beside its candidates: {RUN}/predictions/report.html")
    return 0


def stages() -> list[list[str]]:
    """The commands, as module or script and its arguments."""
    return [
        ["synthjax.train", "--config=configs/quickstart.py", f"--workdir={RUN}"],
        [
            "data_pipeline.render_shards",
            "--config=configs/render_dexed.py",
            f"--output={DATA}",
            "--shards=0",
            f"--samples_per_shard={HELD_OUT}",
            f"--seed={TEST_SEED}",
        ],
        ["synthjax.predict", f"--workdir={RUN}", str(SOUNDS), "--candidates=16", f"--output={RUN / 'predictions'}"],
        ["scripts/quickstart_summary.py", f"--workdir={RUN}", f"--shard={SHARD}"],
    ]


def _write_sounds() -> None:
    """Writes the first sounds of the shard as sound files."""
    make_folder(SOUNDS)
    reader = ShardReader(SHARD)
    for number in range(ANSWERED):
        (SOUNDS / f"sound_{number}.wav").write_bytes(wav(reader.read(AUDIO, number).astype("float32")))


if __name__ == "__main__":
    cli.run(main)
