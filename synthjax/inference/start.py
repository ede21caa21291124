"""A patch to begin with, and how much of it answers keep.

With keep = 1 the start is the answer, with 0 it does not count. Between them a flow begins at the time ``keep`` with a
mix of the start and noise (``methods.sampling``), and of a library's patches each module, such as an operator, is the
start's with the probability ``keep``.

Shapes: W row width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.console.cli import UserError
from data_pipeline.params.mixture import Modules
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.preset_files import read
from synthjax.retrieval.presets import Base, own_row, read_base


@dataclass(frozen=True, eq=False)
class Start:
    """A patch to begin with.

    Attributes:
      name: the patch's name.
      row: (W,), with a note that says nothing: a preset holds none.
      base: the preset that the row changes; None if the row says all of the patch.
      keep: how much of it answers keep, from 0 to 1.
    """

    name: str
    row: NDArray[np.float32]
    base: Base | None
    keep: float

    @property
    def is_answer(self) -> bool:
        """Whether nothing but the note is left to find."""
        return self.keep == 1.0

    def mixed(self, row: NDArray[np.floating], modules: Modules, rng: np.random.Generator) -> NDArray[np.float32]:
        """A row (W,) in which each module is the start's with the probability ``keep``; the note stays."""
        own = rng.random(len(modules.fitting)) < self.keep
        mixed = np.array(row, np.float32)
        columns = np.flatnonzero(own[modules.of_column])
        mixed[columns] = self.row[columns]
        return mixed


def read_start(text: str, spec: ParamSpec, keep: float) -> Start:
    """The start that FILE or FILE:VOICE names; voices are counted from 1, and the first is the default.

    Raises UserError for a file without such a voice, and for a preset of another synthesizer.
    """
    match = re.fullmatch(r"(.+):(\d+)", text)
    path, voice = (Path(match[1]), int(match[2])) if match and not Path(text).exists() else (Path(text), 1)
    patches, _ = read(path)
    if not 1 <= voice <= len(patches):
        raise UserError(f"--start={text}: {path} has voices 1 to {len(patches)}")
    patch = patches[voice - 1]
    if not patch.values.keys() & {parameter.name for parameter in spec.synth_params}:
        raise UserError(f"--start={text} is a preset of spec {patch.spec}, the answers are of {spec.name}")
    return Start(patch.name, own_row(spec, patch), read_base((path, voice - 1), spec), keep)
