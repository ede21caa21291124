"""The sounds that ways of answering are measured on: drawn rows, the patches of preset files, or sound files.

Shapes: N targets, W row width, T samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from data_pipeline.audio.sound_files import load_sound
from data_pipeline.console.cli import UserError, printable
from data_pipeline.params.counter_rng import TEST_SEED
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import OnBase, PatchRenderer
from data_pipeline.render.progress import RenderProgress
from data_pipeline.render.run import Plan, open_shards, render
from data_pipeline.render.worker_pool import Supervision, WorkerPool
from data_pipeline.shards.reader import AUDIO, PARAM_ARRAY, ShardReader
from data_pipeline.synths.choice import instrument
from data_pipeline.synths.instrument import FilePatch
from data_pipeline.synths.preset_files import read
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH
from synthjax.inference.sound_paths import find_sounds
from synthjax.inference.target_note import TargetNote, estimate_note
from synthjax.retrieval.presets import PRESET_NOTE
from synthjax.tasks.rendered import render_settings

BATCH_ROWS = 16


@dataclass(frozen=True, eq=False)
class Targets:
    """N sounds to be matched.

    Attributes:
      names: (N,).
      audio: the sound (2, T) of an index.
      notes: the note of each, known or estimated.
      rows: the patches that made the sounds, or None where they are not known.
      outside: whether the sounds are from outside, so that the time in which they sound counts too.
      about: what they are, as JSON values.
      faults: a line for each that is left out.
    """

    names: Sequence[str]
    audio: Callable[[int], NDArray[np.float32]]
    notes: Sequence[TargetNote]
    rows: Float[np.ndarray, "N W"] | None
    outside: bool
    about: Mapping[str, Any]
    faults: Sequence[str] = field(default=())


def drawn_targets(spec: ParamSpec, count: int, prior: str, renderer: PatchRenderer, folder: Path) -> Targets:
    """Rows 0 to N - 1 of the test seed, rendered into a shard in ``folder``; what is there already is kept.

    ``prior`` is a folder of preset files whose mixtures are drawn; without it the spec's weights are. Raises UserError.
    """
    settings = render_settings(spec, TEST_SEED, prior, renderer.synth)
    plan = Plan(settings, folder, (0,), count, BATCH_ROWS)
    shards = open_shards(plan)
    missing = sum(len(shard.missing) for shard in shards)
    for shard in shards:
        workers = min(renderer.workers, -(-missing // BATCH_ROWS))
        with (
            closing(shard),
            WorkerPool(settings, workers, Supervision()) as pool,
            RenderProgress(count, count - missing) as progress,
        ):
            render(plan, [shard], pool, progress)
    reader = ShardReader(plan.path(0))
    rows = reader.read_rows(PARAM_ARRAY, np.arange(count))
    return Targets(
        [f"row {number}" for number in range(count)],
        lambda index: reader.read(AUDIO, index).astype(np.float32),
        [_note_of(spec.decode(row)) for row in rows],
        rows,
        outside=False,
        about={"targets": "drawn", "rows": count, "seed": TEST_SEED, "prior_hash": settings.prior_hash},
    )


def targets_in(folder: Path, spec: ParamSpec, renderer: PatchRenderer) -> Targets:
    """The targets in a folder: the patches of its preset files if it holds any, or its sounds. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"--targets={folder} is no folder: name one with sounds or preset files, or say drawn")
    endings = instrument(renderer.synth.synth).endings
    presets = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in endings)
    return _preset_targets(folder, presets, spec, renderer) if presets else _sound_targets(folder)


def _preset_targets(folder: Path, files: Sequence[Path], spec: ParamSpec, renderer: PatchRenderer) -> Targets:
    """The patches of preset files, each played with ``PRESET_NOTE``. All sounds are kept in memory as float16."""
    patches: list[tuple[Path, FilePatch]] = []
    faults: list[str] = []
    for path in files:
        try:
            patches += [(path, patch) for patch in read(path)[0]]
        except UserError as error:
            faults.append(str(error))
    note = _note_of(PRESET_NOTE)
    asked = ((number, OnBase(PRESET_NOTE, patch.base)) for number, (_, patch) in enumerate(patches))
    sounds: dict[int, NDArray[np.float16]] = {}
    for one in renderer.render(asked):
        name = f"{patches[one.key][0].name} {one.key}"
        if one.audio is None or not np.abs(one.audio).max():
            faults.append(f"{name}: {one.fault or 'is silent'}")
        else:
            sounds[one.key] = one.audio.astype(np.float16)
    kept = sorted(sounds)
    if not kept:
        raise UserError(f"{folder}: no patch of its preset files can be played ({faults[-1]})")
    return Targets(
        [printable(f"{number} {patches[number][1].name} in {patches[number][0].name}") for number in kept],
        lambda index: sounds[kept[index]].astype(np.float32),
        [note] * len(kept),
        None,
        outside=False,
        about={"targets": str(folder.resolve()), "rows": len(kept), "data": _digest(files), "note": vars(note)},
        faults=faults,
    )


def _sound_targets(folder: Path) -> Targets:
    """The sounds of a folder, which are read when they are needed."""
    faults: list[str] = []
    paths, notes = [], []
    for path in find_sounds([folder], faults.append):
        try:
            notes.append(estimate_note(load_sound(path).audio))
            paths.append(path)
        except UserError as error:
            faults.append(str(error))
    if not paths:
        raise UserError(f"{folder}: none of its sounds can be read ({faults[-1]})")
    return Targets(
        [printable(path.relative_to(folder)) for path in paths],
        lambda index: load_sound(paths[index]).audio,
        notes,
        None,
        outside=True,
        about={"targets": str(folder.resolve()), "rows": len(paths), "data": _digest(paths)},
        faults=faults,
    )


def _note_of(values: Mapping[str, Any]) -> TargetNote:
    return TargetNote(values[PITCH], *values[NOTE_TIMES])


def _digest(paths: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:12]
