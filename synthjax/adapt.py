"""Trains a bundle's model further on the user's own recordings:

    python -m synthjax.adapt RECORDING... --bundle=B.zip --output=B2.zip

Recordings have no patches to learn from, so the command makes some, in rounds. In each round the model of the round
before, and the bundle's library, answer the recordings, and the answers are refined. Mixtures and variations of the
answers are rendered, so their patches are known exactly, and their sounds are corrupted as recordings are. The model
trains on them. A quarter of the recordings, chosen by the hashes of their names, is never learnt from: the rounds end
when the model's own answers to these become no better, and B2 gets the model that answered them best.

A RECORDING is a file, or a folder whose sounds are all taken. The command prints and runs the commands that a person
would type. Every round has a folder under --workdir; started again, the command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from data_pipeline.audio.sound_files import load_sound
from data_pipeline.console import cli
from data_pipeline.console.atomic import atomic_path, make_folder
from data_pipeline.console.cli import UserError, run_command
from synthjax.evaluation.table import METRICS_FILE, PREDICTION, read_table
from synthjax.inference.sound_paths import find_sounds, result_names
from synthjax.runs.bundles import Bundle, read_bundle

FLAGS = flags.FLAGS
# The folders of the recordings, and the part that is held out.
LEARNT, HELD_OUT, PART = "learnt", "held_out", 0.25
SETTINGS = "settings.json"
# The distance of the held-out recordings by which the rounds are compared: MSS in dB over the time they sound.
METRIC = "mss_sounding"
# The model's draws by which a held-out recording is judged.
DRAWS = 32


@dataclass(frozen=True)
class Command:
    """A command of the package: its module, its arguments, and a file that is there once it is done.

    Training knows itself when it is done: it has no such file.
    """

    module: str
    arguments: list[str]
    done: Path | None = None

    def run(self) -> int:
        """Runs the command unless it is done; returns its exit code."""
        if self.done and self.done.exists():
            return 0
        code = run_command(self.module, self.arguments)
        if self.done and code == 0:
            self.done.touch()
        return code


@dataclass(frozen=True)
class Round:
    """A model in the course of the adaptation, and the folder of what is made with it.

    Attributes:
      folder: holds ``run``, the training run that made the model, ``model.zip``, its bundle, and ``held_out``, its
        answers to the held-out recordings. Round 0 has the last alone.
      model: the flag that names the model.
      bundle: the bundle of the model.
      rate: the learning rate of all rounds.
    """

    folder: Path
    model: str
    bundle: str
    rate: float

    def judged(self, recordings: Path) -> Command:
        """The command that answers the held-out recordings."""
        flags = [self.model, f"--targets={recordings}", f"--candidates={DRAWS}", f"--output={self.figures.parent}"]
        return Command("synthjax.evaluate", flags, self.figures.with_name("done"))

    @property
    def figures(self) -> Path:
        """The table of the held-out recordings."""
        return self.folder / HELD_OUT / METRICS_FILE

    def error(self) -> float:
        """The mean ``METRIC`` of the model's answers to the held-out recordings. Raises UserError before ``judged``."""
        table = read_table(self.figures)
        if table is None:
            raise UserError(f"{self.folder} has no figures of the held-out recordings: run the command again")
        return table.metrics[PREDICTION][METRIC].mean

    def next(self, workdir: Path, number: int, library: list[str]) -> tuple[Round, list[Command]]:
        """The round after this one, and the commands that make its model and judge it."""
        folder = workdir / f"round-{number}"
        run, answers, bundled = folder / "run", folder / "answers", folder / "model.zip"
        later = Round(folder, f"--workdir={run}", f"{bundled}", self.rate)
        answered = ["--candidates=8", f"--refine_evaluations={FLAGS.refine_evaluations}", f"--output={answers}"]
        rates = [f"--config.optim.lr={self.rate:g}", f"--config.optim.final_lr={self.rate / 100:g}"]
        trained = [f"--config.data.prior={answers}", f"--config.train.steps={FLAGS.steps}", *rates, f"--workdir={run}"]
        commands = [
            Command(
                "synthjax.predict",
                [f"{workdir / LEARNT}", self.model, *library, *answered],
                answers / "done",
            ),
            Command("synthjax.train", [f"--config=configs/adapted.py:{self.bundle}", *trained]),
            Command("synthjax.bundle", ["export", f"{bundled}", later.model], bundled),
            later.judged(workdir / HELD_OUT),
        ]
        return later, commands


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) < 2:
        raise UserError("give recordings: python -m synthjax.adapt RECORDING... --bundle=B.zip --output=B2.zip")
    output, workdir = Path(FLAGS.output), Path(FLAGS.workdir)
    if output.exists():
        raise UserError(f"{output} exists: remove it, or name another file")
    bundle = read_bundle(FLAGS.bundle)
    if not bundle.has_model:
        raise UserError(f"--bundle={FLAGS.bundle} holds no model, only a library: there is nothing to train further")
    learnt, held_out = split(readable(find_sounds(argv[1:])))
    make_folder(workdir)
    require_same(workdir / SETTINGS, settings_of(bundle, [*learnt, *held_out]))
    copied(learnt, workdir / LEARNT)
    copied(held_out, workdir / HELD_OUT)
    library = _library(bundle, workdir)
    print(f"{len(learnt)} recordings are learnt from, {len(held_out)} are held out")
    rate = bundle.config().optim.lr / 10
    start = Round(workdir / "round-0", f"--bundle={FLAGS.bundle}", FLAGS.bundle, rate)
    return adapt(start, workdir, library, output)


def adapt(start: Round, workdir: Path, library: list[str], output: Path) -> int:
    """Runs the rounds and writes the bundle of the best. Returns the exit code of the first that fails, or 0."""
    if code := first_fault([start.judged(workdir / HELD_OUT)]):
        return code
    rounds = [start]
    for number in range(1, FLAGS.rounds + 1):
        later, commands = rounds[-1].next(workdir, number, library)
        if code := first_fault(commands):
            return code
        rounds.append(later)
        if later.error() >= rounds[-2].error():
            break
    for number, one in enumerate(rounds):
        print(f"round {number}: {METRIC} of the held-out recordings {one.error():.2f}")
    best = min(rounds, key=Round.error)
    if best is start:
        print(f"no round betters the bundle's own model, so {output} was not written")
        return 0
    return run_command("synthjax.bundle", ["export", f"{output}", best.model, *library, f"--licence={FLAGS.licence}"])


def first_fault(commands: Iterable[Command]) -> int:
    """Runs commands one after the other until one fails; returns its exit code, or 0."""
    return next(filter(None, (command.run() for command in commands)), 0)


def readable(recordings: Sequence[Path]) -> list[Path]:
    """The recordings that are sounds; prints why others are left out."""
    found = []
    for path in recordings:
        try:
            load_sound(path)
            found.append(path)
        except UserError as error:
            print(f"left out: {error}")
    return found


def settings_of(bundle: Bundle, recordings: Sequence[Path]) -> dict[str, Any]:
    """What the rounds depend on, as JSON values."""
    return {
        "bundle": bundle.about["sha256"],
        "recordings": sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in recordings),
        "steps": FLAGS.steps,
        "refine_evaluations": FLAGS.refine_evaluations,
    }


def require_same(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of an adaptation, or raises UserError if the folder has another one."""
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if changed := [name for name, value in settings.items() if before.get(name) != value]:
            raise UserError(f"{path.parent} has an adaptation with another {changed[0]}: choose another --workdir")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings), encoding="utf-8")


def split(recordings: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The recordings to learn from, and those that are held out. Raises UserError if there is but one."""
    if len(recordings) < 2:
        raise UserError("adaptation needs two recordings or more: one of them is held out")
    hashed = sorted(recordings, key=lambda path: hashlib.sha256(path.name.encode(errors="replace")).digest())
    count = math.ceil(PART * len(hashed))
    return hashed[count:], hashed[:count]


def copied(recordings: Sequence[Path], folder: Path) -> None:
    """Copies recordings to a folder, under names that differ. Raises UserError if it holds others."""
    names = {name + path.suffix: path for path, name in zip(recordings, result_names(recordings), strict=True)}
    make_folder(folder)
    if others := {path.name for path in folder.iterdir()} - names.keys():
        raise UserError(f"{folder} has {min(others)} of other recordings: choose another --workdir")
    for name, path in names.items():
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(path, temporary)


def _library(bundle: Bundle, workdir: Path) -> list[str]:
    """The flag for the bundle's library, written to a file; [] if it has none."""
    if bundle.library is None:
        return []
    path = workdir / "library.index"
    with atomic_path(path) as temporary:
        temporary.write_bytes(bundle.library)
    return [f"--library={path}"]


if __name__ == "__main__":
    flags.DEFINE_string("bundle", None, "The bundle whose model is trained further.", required=True)
    flags.DEFINE_string("output", None, "The bundle to write.", required=True)
    flags.DEFINE_string("workdir", "runs/adapt", "Folder of the rounds.")
    flags.DEFINE_integer("rounds", 3, "Rounds at most.", lower_bound=1)
    flags.DEFINE_integer("steps", 1_000, "Training steps of a round, more than the 50 of the warm-up.", lower_bound=51)
    flags.DEFINE_integer("refine_evaluations", 500, "Renders that refine each answer.", lower_bound=0)
    flags.DEFINE_string("licence", "", "Licence of the new bundle.")
    cli.run(main)
