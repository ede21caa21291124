"""An index of known patches: the embedding of each patch's sound, and what gives the patch back.

An index is one safetensors file. Its metadata hold a version, and the spec, synthesizer and sources of the patches.

Shapes: N patches of all sources, n of one, W row width, D components of the embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int8, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_pipeline.console.atomic import atomic_path
from data_pipeline.console.cli import UserError
from data_pipeline.console.os_errors import why
from data_pipeline.params.mixture import Held
from data_pipeline.params.spec import ParamSpec, parse_spec, spec_json
from synthjax.retrieval.embedding import FRAME_SECONDS, Embedding

METADATA, VERSION = "synthjax_index", 3

# The arrays of a source that depend on its kind.
OPTIONAL_ARRAYS = ("attempts", "places", "rows")


@dataclass(frozen=True, eq=False)
class Source:
    """Patches of one draw, rows of one shard, or presets of one folder.

    Attributes:
      about: JSON values. Of a draw: ``seed``, the number of the ``first`` patch, ``prior_hash`` (the content hash of a
        mixture; None: the weights of the spec), for how many seconds all notes are ``held``, beginning at 0 s (0: as
        drawn), and how many renders were ``refused`` by reason. Of other rows: their ``shard``. Of presets: the
        ``folder``, its ``files``, and the ``names`` of the patches.
      attempts: of a draw, the attempt (n,) uint16 that was accepted for each patch.
      places: of presets, the number (n, 2) of each one's file, and its own number in the file.
      delays: the frames from each patch's note to its sound's onset (n,), as ``embedding.delay`` counts them.
      rows: the patches (n, W) of a mixture, a shard or presets. Those of a draw by the spec's weights are drawn again.
    """

    about: Mapping[str, Any]
    delays: UInt8[np.ndarray, " n"]
    attempts: Int[np.ndarray, " n"] | None = None
    places: Int[np.ndarray, "n 2"] | None = None
    rows: Float[np.ndarray, "n W"] | None = None

    def __len__(self) -> int:
        return len(self.delays)

    def require(self, spec: ParamSpec) -> None:
        """Raises ValueError or KeyError for a source that is not whole."""
        drawn, about = self.attempts is not None, self.about
        if self.delays.ndim != 1:
            raise ValueError(f"delays of shape {self.delays.shape}")
        if not drawn and self.rows is None:
            raise ValueError("a source without patches")
        if drawn and not (isinstance(about["seed"], int) and isinstance(about["first"], int) and about["held"] >= 0.0):
            raise ValueError("a source without seed")
        if self.places is not None:
            whole = isinstance(about["folder"], str) and len(about["names"]) == len(self)
            files = self.places[:, 0]
            if not whole or self.places.shape != (len(self), 2) or not (files < len(about["files"])).all():
                raise ValueError("presets without files")
            if (self.places < 0).any():
                raise ValueError("negative places of presets")
        if self.rows is not None and self.rows.shape != (len(self), spec.width):
            raise ValueError(f"rows of shape {self.rows.shape}")
        if self.attempts is not None and self.attempts.shape != (len(self),):
            raise ValueError(f"attempts of shape {self.attempts.shape}")
        self.described()

    def patch(self, number: int, spec: ParamSpec) -> tuple[Float[np.ndarray, " W"], str, PresetPlace | None]:
        """The row (W,) of a patch, where it is from, and its place if it is a preset."""
        about = self.about
        if self.places is not None:
            assert self.rows is not None
            file, place = map(int, self.places[number])
            preset = (Path(about["folder"]) / about["files"][file], place)
            return self.rows[number], f"preset {about['names'][number]!r} in {about['files'][file]}", preset
        if self.attempts is None:
            assert self.rows is not None
            return self.rows[number], f"row {number} of {Path(about['shard']).name}", None
        seed, index = about["seed"], about["first"] + number
        if self.rows is not None:
            return self.rows[number], f"row {index} of seed {seed} of a mixture", None
        prior = Held(spec, spec, about["held"]) if about["held"] else spec
        [row] = prior.sample(seed, [index], [int(self.attempts[number])])
        return row, f"row {index} of seed {seed}", None

    def described(self) -> str:
        """A line that says what the source holds."""
        about = self.about
        if self.places is not None:
            return f"- {len(self)} presets of {about['folder']}"
        if self.attempts is None:
            return f"- {len(self)} rows of {about['shard']}"
        prior = "the weights of the spec" if self.rows is None else f"mixture {about['prior_hash']}"
        refused = ", ".join(f"{count} {reason}" for reason, count in about["refused"].items()) or "none"
        notes = f"held for {about['held']:g} s" if about["held"] else "as drawn"
        return (
            f"- {len(self)} drawn from {prior}: seed {about['seed']}, from row {about['first']}; notes {notes}; "
            f"refused: {refused}"
        )


PresetPlace = tuple[Path, int]
"""The file of a preset, and its number in the file."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A patch of an index: its row (W,), where it is from, and the distance of its sound to the target's.

    The sound begins ``delay`` seconds after the note.
    ``preset`` is the place of a preset, which may be played with any note.
    """

    row: Float[np.ndarray, " W"]
    origin: str
    distance: float
    delay: float
    preset: PresetPlace | None = None


@dataclass(frozen=True, eq=False)
class Index:
    """N patches of one spec, each with the embedding of its sound.

    Attributes:
      spec: the spec of the rows.
      synth: name and version of the synthesizer that rendered the sounds.
      embedding: the embedding of all patches.
      codes: the embeddings (N, D).
      sources: where the patches are from, in the order of the codes.
    """

    spec: ParamSpec
    synth: tuple[str, str]
    embedding: Embedding
    codes: Int8[np.ndarray, "N D"]
    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def patches(self, numbers: Sequence[int], distances: Sequence[float]) -> list[Patch]:
        """The patches of some numbers below N, which lie at these distances from a target."""
        return [self._patch(int(one), float(far)) for one, far in zip(numbers, distances, strict=True)]

    def _patch(self, number: int, distance: float) -> Patch:
        place = int(np.searchsorted(self._ends, number, side="right"))
        source = self.sources[place]
        own = number - int(self._ends[place]) + len(source)
        row, origin, preset = source.patch(own, self.spec)
        return Patch(row, origin, distance, int(source.delays[own]) * FRAME_SECONDS, preset)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that differ for another index."""
        about = json.dumps([self.synth, self.spec.content_hash, [source.about for source in self.sources]])
        return hashlib.sha256(about.encode() + self.codes.tobytes()).hexdigest()[:12]

    def described(self) -> list[str]:
        """Lines that say what the index holds."""
        lines = [f"patches: {len(self)}, of spec {self.spec.name}, rendered with {' '.join(self.synth)}"]
        return [*lines, *(source.described() for source in self.sources)]

    @cached_property
    def _ends(self) -> Int[np.ndarray, " S"]:
        return np.cumsum([len(source) for source in self.sources])

    def with_sources(self, sources: Sequence[Source], codes: Int8[np.ndarray, "n D"]) -> Index:
        """The index with further patches."""
        return replace(self, codes=np.concatenate([self.codes, codes]), sources=(*self.sources, *sources))


def write_index(path: Path, index: Index) -> None:
    """Writes an index, whole or not at all. Raises UserError."""
    tensors = {"codes": index.codes, "mean": index.embedding.mean, "basis": index.embedding.basis}
    for number, source in enumerate(index.sources):
        arrays = {name: getattr(source, name) for name in ("delays", *OPTIONAL_ARRAYS)}
        tensors |= {f"{name}.{number}": array for name, array in arrays.items() if array is not None}
    about = {
        "version": VERSION,
        "spec": spec_json(index.spec),
        "synth": index.synth,
        "sources": [source.about for source in index.sources],
    }
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(whole, {METADATA: json.dumps(about)}))


def read_index(path: Path) -> Index:
    """The index in a file. Raises UserError for a damaged file, and one that is no index."""
    try:
        return parse_index(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {why(error)}") from error


def parse_index(content: bytes, name: str) -> Index:
    """The index in the bytes of a file called ``name``. Raises UserError as ``read_index`` does."""
    try:
        tensors = load(content)  # It checks the header.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header["__metadata__"][METADATA])
        if about["version"] != VERSION:
            raise UserError(f"{name} is an index of version {about['version']}, not {VERSION}: build it again")
        return _index(about, tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{name} is no index of patches, or is damaged: {error!r}") from error


def _index(about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Index:
    spec = parse_spec(about["spec"], "of an index")
    sources = tuple(
        Source(of_one, tensors[f"delays.{number}"], *(tensors.get(f"{name}.{number}") for name in OPTIONAL_ARRAYS))
        for number, of_one in enumerate(about["sources"])
    )
    embedding = Embedding(tensors["mean"], tensors["basis"])
    codes = tensors["codes"]
    name, version = map(str, about["synth"])
    for source in sources:
        source.require(spec)
    if codes.shape != (sum(map(len, sources)), embedding.basis.shape[1]):
        raise ValueError(f"embeddings of shape {codes.shape}")
    return Index(spec, (name, version), embedding, codes, sources)
