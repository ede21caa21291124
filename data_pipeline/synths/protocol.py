"""What the renderer asks of a synthesizer."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cli import UserError
from data_pipeline.param_spec import ParamSpec

# The modules of data_pipeline.synths that hold a synthesizer.
SUBTRACTIVE, SURGE_XT, VST3 = SYNTHS = ("subtractive", "surge_xt", "vst3")

SAMPLE_RATE = 44100
CHANNELS = 2
SECONDS = 4.0
SAMPLES = 176400
VELOCITY = 100

# The note's entries in ``ParamSpec.decode``'s values: MIDI note number, and (start, end) in seconds.
PITCH = "pitch"
NOTE_TIMES = "note_start_and_end"

Audio = NDArray[np.float32]


class DriftError(Exception):
    """The synthesizer does not hold the patch it was given: what it rendered since the last check is worthless."""


class Synth(Protocol):
    """One synthesizer of this process; ``name`` and ``version`` go into the shards it fills."""

    name: str
    version: str

    def render(self, values: Mapping[str, Any]) -> Audio:
        """Raw values of every spec parameter and of the note to audio (2, 176400) at 44.1 kHz, full scale 1.0.

        Whatever was rendered before must not be heard.
        """
        ...

    def verify(self) -> None:
        """Compares what the synthesizer holds with the patch rendered last. Raises DriftError where they differ."""
        ...

    def preset(self) -> bytes | None:
        """What the synthesizer holds, as a ``.vstpreset`` that any host loads; None where it is no plugin."""
        ...


@dataclass(frozen=True)
class SynthSettings:
    """Which synthesizer to open, and how.

    ``synth`` is a module of ``data_pipeline.synths`` or the dotted path of any other module with a function
    ``open_synth(settings) -> Synth``. ``spec`` is what its patches are made of. ``plugin`` is the path of a VST3
    plugin, ``preset`` that of a base patch; synthesizers that need none ignore them.
    """

    synth: str
    spec: ParamSpec
    plugin: str = ""
    preset: str = ""
    allow_other_version: bool = False


def module_of(synth: str) -> str:
    """The dotted path of a synthesizer's module. Raises UserError for a name that none here has."""
    if "." in synth:
        return synth
    if synth not in SYNTHS:
        raise UserError(
            f"no synthesizer is called {synth!r}: there are {', '.join(SYNTHS)}, or the dotted path of a module"
        )
    return f"data_pipeline.synths.{synth}"


def open_synth(settings: SynthSettings) -> Synth:
    """Opens a synthesizer in this process. Raises UserError for an unknown one, and what the opening raises."""
    path = module_of(settings.synth)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            raise UserError(f"no synthesizer is called {settings.synth!r}: there is no module {path}") from error
        raise
    return cast(Synth, module.open_synth(settings))
