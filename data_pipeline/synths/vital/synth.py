"""Vital, rendered in this process by the package vita (GPL-3, optional).

An engine that has played a note keeps its effects' echoes and its LFOs' times, and no call removes them. So every
render has an engine of its own. Phases are never random, not even on a base patch that asks for it. A patch then has
the same bits in every render, unless a base patch is modulated by one of Vital's random sources.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import vita

from data_pipeline.audio.contract import CHANNELS, SAMPLE_RATE, SECONDS, VELOCITY
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH, Audio, DriftError
from data_pipeline.synths.vital.patch import STEADY, Patch, base_patch, read_patch, values_in, with_values, write_patch

# Vital limits its output to 2.1.
GAIN = 0.475
MAX_VELOCITY = 127
# More than fenv_t of <fenv.h> has on any system.
FENV_BYTES = 256


class Vital:
    """Vital as a ``Synth``."""

    name = "Vital"

    def __init__(self, spec: ParamSpec, base: bytes | None = None) -> None:
        """``base`` is the ``.vital`` file whose patch the rows change. Raises UserError for a malformed one."""
        self._spec = spec
        self._base = base_patch() if base is None else read_patch(base)
        self._engine: Any = None
        self._given: Mapping[str, Any] = {}
        self.version = f"vita {version('vita')}"

    def render(
        self,
        values: Mapping[str, Any],
        *,
        base: bytes | None = None,
        velocity: int = VELOCITY,
        seconds: float = SECONDS,
    ) -> Audio:
        """Renders raw values to audio (2, T); ``base`` is a ``.vital`` file.

        Before its note the synthesizer is silent. Raises UserError for a base patch that Vital does not take.
        """
        patch = with_values(self._base if base is None else read_patch(base), self._spec, values)
        self._engine = _engine({**patch, "settings": {**patch["settings"], **STEADY}})
        self._given = {name: values[name] for name in self._spec.slices if name in values}
        samples = round(seconds * SAMPLE_RATE)
        first, last = (min(round(time * SAMPLE_RATE), samples) for time in values[NOTE_TIMES])
        audio = np.zeros((CHANNELS, samples), np.float32)
        if first < samples:
            # Vital rounds the length down, so half a sample more keeps the last one.
            note, length = (last - first) / SAMPLE_RATE, (samples - first + 0.5) / SAMPLE_RATE
            with _floating_point_kept():
                sound = self._engine.render(int(values[PITCH]), velocity / MAX_VELOCITY, note, length)
            audio[:, first:] = GAIN * sound[:, : samples - first]
        return audio

    def verify(self) -> None:
        """Reads the values back from the engine's own patch. Raises DriftError where one differs from the given."""
        if self._engine is None:
            return
        held, _ = values_in(read_patch(self._engine.to_json().encode()), self._spec)
        names = [parameter.name for parameter in self._spec.synth_params if parameter.name in self._given]
        # The engine holds float32.
        differing = [
            name for name in names if name not in held or np.float32(held[name]) != np.float32(self._given[name])
        ]
        if differing:
            raise DriftError(f"Vital holds another {', '.join(differing[:3])} than it was given")

    def preset(self) -> None:
        """None: the engine is no plugin."""


@contextmanager
def _floating_point_kept() -> Iterator[None]:
    """Keeps the processor's floating-point settings: Vital leaves them so that small numbers become 0 everywhere."""
    library, state = _math_library(), ctypes.create_string_buffer(FENV_BYTES)
    if library is None:
        yield
        return
    library.fegetenv(state)
    try:
        yield
    finally:
        library.fesetenv(state)


@cache
def _math_library() -> ctypes.CDLL | None:
    name = ctypes.util.find_library("m")
    return ctypes.CDLL(name) if name else None


def _engine(patch: Patch) -> Any:
    engine = vita.Synth()
    if not engine.load_json(write_patch(patch).decode()):
        raise UserError("Vital does not take the base patch: it is of a newer version, or damaged")
    return engine
