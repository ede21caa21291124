"""The interface of a synthesizer, and the list of those that come with this package.

To add one: write a module with ``open_synth(settings) -> Synth`` and name it in ``SYNTHS``, put its spec into
``params/specs``, and say in ``choice.synth_for`` which specs it renders. A VST3 instrument needs only a spec
(``data_pipeline.introspect``) and ``--plugin``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec

SUBTRACTIVE, SURGE_XT, VST3 = "subtractive", "surge_xt", "vst3"
# The list of synthesizers: the module of each. It has a function ``open_synth(settings) -> Synth``.
SYNTHS = {
    SUBTRACTIVE: "data_pipeline.synths.subtractive",
    SURGE_XT: "data_pipeline.synths.surge.synth",
    VST3: "data_pipeline.synths.vst3",
}

# The names of the note's parameters: the MIDI note number, and (start, end) in seconds.
PITCH = "pitch"
NOTE_TIMES = "note_start_and_end"

Audio = NDArray[np.float32]


class DriftError(Exception):
    """The synthesizer does not hold the patch it was given: every render since the last check is worthless."""


class SoundingError(Exception):
    """The synthesizer sounded before the note, however long it was left alone.

    Either an earlier note still sounded, or the patch sounds without a note. ``audio`` (2, 176400) holds the render.
    """

    def __init__(self, audio: Audio) -> None:
        super().__init__("the synthesizer sounds before the note")
        self.audio = audio


class Synth(Protocol):
    """One synthesizer in this process. Its ``name`` and ``version`` are stored in the shards that it renders."""

    name: str
    version: str

    def render(self, values: Mapping[str, Any]) -> Audio:
        """Renders raw values of every parameter of the spec to audio (2, 176400) at 44.1 kHz, full scale 1.0.

        The audio must not contain anything of an earlier render. Raises SoundingError where it may.
        """
        ...

    def verify(self) -> None:
        """Compares the patch that the synthesizer holds with the last rendered one. Raises DriftError."""
        ...

    def preset(self) -> bytes | None:
        """The patch that the synthesizer holds, as a ``.vstpreset`` for any host; None if it is no plugin."""
        ...


@dataclass(frozen=True)
class SynthSettings:
    """Which synthesizer to open, and how.

    ``synth`` is a name of ``SYNTHS`` or the dotted path of another module with a function
    ``open_synth(settings) -> Synth``. ``spec`` has the parameters of its patches. ``plugin`` is the path of a VST3
    plugin, ``preset`` that of a base patch; a synthesizer that needs neither ignores them. ``plugin_name`` chooses one
    of several plugins in the file ``plugin``.
    """

    synth: str
    spec: ParamSpec
    plugin: str = ""
    preset: str = ""
    allow_other_version: bool = False
    plugin_name: str = ""


def module_of(synth: str) -> str:
    """The dotted path of a synthesizer's module. Raises UserError for an unknown name."""
    if "." in synth:
        return synth
    if synth not in SYNTHS:
        raise UserError(
            f"no synthesizer is called {synth!r}: there are {', '.join(SYNTHS)}, or the dotted path of a module"
        )
    return SYNTHS[synth]


def open_synth(settings: SynthSettings) -> Synth:
    """Opens a synthesizer in this process. Raises UserError for an unknown one, and any error of opening it."""
    path = module_of(settings.synth)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(f"{error.name}.")):
            raise UserError(f"no synthesizer is called {settings.synth!r}: there is no module {path}") from error
        raise
    return cast(Synth, module.open_synth(settings))
