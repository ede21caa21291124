"""The user's own presets as patches of an index.

A preset is its own base patch: what the spec's parameters cannot say stays as it is. Every preset is rendered once,
with ``PRESET_NOTE``, but may be played with any note.

Shapes: n presets, W row width, E pooled numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.console.cli import UserError
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import OnBase, PatchRenderer
from data_pipeline.synths.choice import instrument
from data_pipeline.synths.instrument import FilePatch
from data_pipeline.synths.preset_files import read
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH
from data_pipeline.synths.vst3_preset import read_preset_file
from synthjax.retrieval.embedding import delay, pooled
from synthjax.retrieval.index import PresetPlace, Source

# The note of a preset, which itself holds none: in an index, and as a target of evaluations.
PRESET_NOTE = {PITCH: 60, NOTE_TIMES: (0.0, 3.0)}


@dataclass(frozen=True, eq=False)
class Base:
    """A preset as a base patch: its content, as ``Synth.render`` takes it, and its row (W,).

    Values that equal those of the row are not written, but those named in ``written`` always are: where the spec does
    not have the preset's value, the row has another one in its place.
    """

    content: bytes
    row: Float[np.ndarray, " W"]
    written: Collection[str] = ()

    def with_row(self, row: NDArray[np.floating], spec: ParamSpec) -> OnBase:
        """The preset with the note of a row (W,), and with those values of it that are not the preset's own."""
        values = spec.decode(row)
        names = {parameter.name for parameter in spec.note_params} | set(self.written)
        for parameter in spec.synth_params:
            columns = spec.slices[parameter.name]
            if not np.allclose(row[columns], self.row[columns], atol=1e-6):
                names.add(parameter.name)
        return OnBase({name: values[name] for name in names}, self.content)


def read_presets(folder: Path, spec: ParamSpec, renderer: PatchRenderer) -> tuple[Source, UInt8[np.ndarray, "n E"]]:
    """The presets in a folder and the folders below it, with their pooled spectrograms; prints what is left out.

    Raises UserError for a folder without presets of the renderer's synthesizer.
    """
    own = instrument(renderer.synth.synth)
    if not folder.is_dir():
        raise UserError(f"--presets={folder} is no folder: name one with preset files ({', '.join(own.endings)})")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in own.endings)
    patches: list[tuple[int, int, FilePatch]] = []
    for number, path in enumerate(files):
        try:
            patches += [(number, place, patch) for place, patch in enumerate(own.read(read_preset_file(path))[0])]
        except UserError as error:
            print(f"left out: {path}: {error}")
    if not patches:
        raise UserError(f"--presets={folder} has no preset of {own.name} ({', '.join(own.endings)})")
    sounds: dict[int, tuple[UInt8[np.ndarray, " E"], int]] = {}
    with progress_bar("rendering presets", len(patches)) as advance:
        asked = ((key, OnBase(PRESET_NOTE, patch.base)) for key, (_, _, patch) in enumerate(patches))
        for one in renderer.render(asked, measure=_pooled):
            if one.measured is not None:
                sounds[one.key] = one.measured
            advance(1)
    kept = sorted(sounds)
    if not kept:
        raise UserError(f"--presets={folder} has no preset of {own.name} that sounds")
    if len(kept) < len(patches):
        print(f"left out: {len(patches) - len(kept)} of {len(patches)} presets, which are silent or cannot be rendered")
    about = {
        "folder": str(folder.resolve()),
        "files": [str(path.relative_to(folder)) for path in files],
        "names": [patches[key][2].name for key in kept],
    }
    places = np.array([patches[key][:2] for key in kept], np.int32)
    rows = np.stack([own_row(spec, patches[key][2]) for key in kept])
    pooled_sounds, delays = zip(*(sounds[key] for key in kept), strict=True)
    return Source(about, np.array(delays, np.uint8), places=places, rows=rows), np.stack(pooled_sounds)


def own_row(spec: ParamSpec, patch: FilePatch) -> NDArray[np.float32]:
    """The row (W,) of a preset. A value that the spec does not have gets columns that stand for no change."""
    row, values = np.zeros(spec.width, np.float32), {**patch.values, **PRESET_NOTE}
    for parameter in spec.parameters:
        columns = row[spec.slices[parameter.name]]
        try:
            columns[:] = parameter.encode(values[parameter.name])
        except (KeyError, ValueError):
            columns[:] = parameter.sample(np.zeros((1, parameter.draws)))[0]
    return row


def read_base(preset: PresetPlace, spec: ParamSpec) -> Base | None:
    """A preset of an index as a base patch; None where a row of the spec says all of the preset.

    Raises UserError if its file is no longer there.
    """
    path, place = preset
    patches = _read_patches(path)
    if place >= len(patches):
        raise UserError(f"{path} no longer has a patch {place}: make the index again")
    patch = patches[place]
    whole = not patch.outside and patch.values.keys() == {parameter.name for parameter in spec.synth_params}
    return None if whole else Base(patch.base, own_row(spec, patch))


@lru_cache(maxsize=256)
def _read_patches(path: Path) -> list[FilePatch]:
    return read(path)[0]


def _pooled(audio: NDArray[np.float32]) -> tuple[UInt8[np.ndarray, " E"], int] | None:
    """The pooled spectrogram of a preset played with ``PRESET_NOTE``, and its delay; None for silence."""
    if not np.abs(audio).max() > 0.0:
        return None
    mel = mel_spectrogram(audio)
    return pooled(mel), delay(mel, 0.0)
