"""Dexed, the DX7 in software, rendered in this process by the package dexed-py (GPL-3, optional).

The engine gives the same bits for the same voice, whatever it played before.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import dexed
import numpy as np

from data_pipeline.audio.contract import CHANNELS, SAMPLE_RATE, SECONDS, VELOCITY
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.dexed.voice import INIT_VOICE, LARGEST, Voice
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH, Audio, DriftError

# Each of the six operators reaches full scale.
GAIN = 1 / 6


class Dexed:
    """Dexed as a ``Synth``."""

    name = "Dexed"

    def __init__(self, spec: ParamSpec) -> None:
        self._names = [parameter.name for parameter in spec.synth_params]
        self._engine = dexed.DexedSynth(SAMPLE_RATE)
        self._given = self._held = b""
        self.version = f"dexed-py {version('dexed-py')}"

    def render(
        self,
        values: Mapping[str, Any],
        *,
        base: bytes | None = None,
        velocity: int = VELOCITY,
        seconds: float = SECONDS,
    ) -> Audio:
        """Renders raw values to audio (2, T), the same in both channels; ``base`` is a single voice of 155 bytes.

        Before its note the synthesizer is silent.
        """
        voice = Voice.from_single(base) if base else INIT_VOICE
        integers = {name: int(values[name]) for name in self._names if name in values}
        self._given = Voice(voice.name, {**voice.values, **integers}).single()
        patch = dexed.Patch.from_sysex(self._given)
        self._held = patch.to_sysex()[: len(self._given)]
        self._engine.load_patch(patch)
        samples = round(seconds * SAMPLE_RATE)
        first, last = (min(round(time * SAMPLE_RATE), samples) for time in values[NOTE_TIMES])
        audio = np.zeros((CHANNELS, samples), np.float32)
        length = (samples - first) / SAMPLE_RATE
        sound = self._engine.render(int(values[PITCH]), velocity, (last - first) / SAMPLE_RATE, length)
        audio[:, first:] = GAIN * sound[: samples - first]
        return audio

    def verify(self) -> None:
        """Compares the bytes that the engine was given with those of the voice. Raises DriftError."""
        differing = [name for name, given, held in zip(LARGEST, self._given, self._held, strict=False) if given != held]
        if differing:
            raise DriftError(f"Dexed holds another {', '.join(differing[:3])} than it was given")

    def preset(self) -> None:
        """None: the engine is no plugin."""
