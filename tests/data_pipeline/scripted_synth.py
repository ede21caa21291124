"""A synthesizer that fails as a script says, to test the supervision of render workers.

``settings.preset`` is the path of a JSON script. Its faults strike by patch (``level`` at or under a threshold), so
that what happens does not depend on which worker renders it; ``once`` restricts a fault to the first time in the run.
Patches of ``drones`` sound before their note; those of ``rings`` sound on in all later renders of their instance.
``waits_after`` makes every worker stand still after so many renders until ``go_on`` is called, for tests that strike in
the middle of a run; ``waiting`` tells how many do.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.audio.contract import SAMPLE_RATE, SAMPLES
from data_pipeline.synths.instrument import Instrument
from data_pipeline.synths.protocol import Audio, DriftError, SoundingError, SynthSettings

SPEC = {
    "name": "scripted",
    "width": 5,
    "synth_params": [
        {"name": "level", "kind": "continuous", "min": 0.0, "max": 1.0},
        {"name": "tone", "kind": "continuous", "min": 0.0, "max": 1.0},
    ],
    "note_params": [
        {"name": "pitch", "kind": "discrete", "min": 48, "max": 72},
        {"name": "note_start_and_end", "kind": "note_duration", "max_seconds": 4.0},
    ],
}


class ScriptedSynth:
    """Renders a sine wave, unless the script says otherwise."""

    name = "scripted"

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._script = json.loads(self._path.read_text())
        self.version = self._script.get("version", "1.0")
        self._renders = 0
        self._drifted = self._rings = False
        if "start" in self._script and self._strikes("start"):
            print("cannot find the wavetables", flush=True)  # os._exit drops what is not.
            os._exit(3)

    def render(self, values: Mapping[str, Any], **_: Any) -> Audio:
        self._renders += 1
        self._values = values
        if self._rings or values["level"] <= self._script.get("drones", -1.0):
            raise SoundingError(0.5 * sine(values))
        self._rings = values["level"] <= self._script.get("rings", -1.0)
        for fault in ("crash", "hang", "error", "drift", "nan", "shape", "noisy_death"):
            if values["level"] <= self._script.get(fault, -1.0) and self._strikes(fault):
                audio = getattr(self, f"_{fault}")()
                if audio is not None:
                    return audio
        if self._renders > self._script.get("dies_silently_after", np.inf):
            return np.zeros((2, SAMPLES), np.float32)
        if "grows" in self._script:
            self._hoard = [*getattr(self, "_hoard", []), np.ones(self._script["grows"], np.uint8)]
        if self._renders > self._script.get("waits_after", np.inf):
            self._path.with_name(f"waits.{os.getpid()}").touch()
            while not _go_file(self._path).exists():
                time.sleep(0.02)
        return sine(values)

    def preset(self) -> bytes:
        return json.dumps(self._values["level"]).encode()

    def verify(self) -> None:
        if self._drifted:
            raise DriftError("tone is 0.1, not 0.2")

    def _strikes(self, fault: str) -> bool:
        if fault not in self._script.get("once", []):
            return True
        try:
            self._path.with_name(f"{fault}.happened").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _crash(self) -> None:
        print("free(): invalid pointer", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def _hang(self) -> None:
        time.sleep(3600)

    def _error(self) -> None:
        raise RuntimeError("the plugin refused the state")

    def _drift(self) -> None:
        self._drifted = True

    def _nan(self) -> Audio:
        return np.full((2, SAMPLES), np.nan, np.float32)

    def _shape(self) -> Audio:
        return np.zeros((1, 12), np.float32)

    def _noisy_death(self) -> Audio:
        return np.full((2, SAMPLES), 3.0, np.float32)


def _go_file(script: Path) -> Path:
    return script.with_name("go")


def waiting(script: Path) -> int:
    """The number of workers of a script with ``waits_after`` that stand still."""
    return len(list(script.parent.glob("waits.*")))


def go_on(script: Path) -> None:
    """Ends the waiting of all workers of a script with ``waits_after``."""
    _go_file(script).touch()


def sine(values: Mapping[str, Any]) -> Audio:
    """The sound of the synthesizer without a fault."""
    seconds = np.arange(SAMPLES) / SAMPLE_RATE
    frequency = 440 * 2 ** ((values["pitch"] - 69) / 12)
    tone = np.sin(2 * np.pi * frequency * seconds) + values["tone"] * np.sin(4 * np.pi * frequency * seconds)
    return np.tile((0.4 * values["level"] * tone).astype(np.float32), (2, 1))


class ScriptedInstrument(Instrument):
    name = "scripted"
    takes = frozenset(("preset",))

    def open(self, settings: SynthSettings) -> ScriptedSynth:
        return ScriptedSynth(settings.preset)


INSTRUMENT = ScriptedInstrument()
