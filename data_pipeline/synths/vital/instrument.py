"""Vital as an ``Instrument``. Its preset files are ``.vital``.

The spec has Vital's core panel, 145 parameters: three oscillators that play basic waves, a noise source, two filters,
envelopes 1 to 3, LFO 1, six modulations, and the main controls of eight effects. ``scripts/vital_spec.py`` lists them,
and the distribution that random patches are drawn from.

A raw value is the number that a ``.vital`` file holds: the control's own unit, on which the control moves evenly. So a
file holds raw values as they are, and a column is the position of the control. A time of an envelope is the fourth root
of seconds, a level the root of the amplitude, a rate the logarithm to base 2 of Hz.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.console.cli import UserError
from data_pipeline.params.groups import Panel
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.synths.instrument import FilePatch, Instrument, Values
from data_pipeline.synths.protocol import Synth, SynthSettings
from data_pipeline.synths.vital import patch as vital_patch
from data_pipeline.synths.vst3_preset import read_preset_file

# The number that Vital shows for a control's value, by scale.
_SCALES = {
    "linear": lambda value: value,
    "quadratic": lambda value: value**2,
    "quartic": lambda value: value**4,
    "exponential": lambda value: 2.0**value,
    "period": lambda value: 2.0**-value,
}


class VitalInstrument(Instrument):
    """Vital: parameters are called as Vital calls its controls, and modulations ``lfo_1_to_filter_1_cutoff``."""

    name = "vital"
    specs = ("vital",)
    exact = True
    takes = frozenset(("preset",))
    needs = "vita"
    extra = "synthjax[vital]"
    endings = (".vital",)
    writes = (".vital",)
    panel = Panel(
        groups=(
            (r"(?=\w+_to_)", "Modulation"),
            (r"osc_(\d)_", "Oscillator {}"),
            (r"sample_", "Noise"),
            (r"filter_(\d)_", "Filter {}"),
            (r"env_(\d)_", "Envelope {}"),
            (r"lfo_(\d)_", "LFO {}"),
        ),
        exchangeable=("Oscillator {}", "Filter {}", "Envelope {}"),
    )

    def open(self, settings: SynthSettings) -> Synth:
        """Opens Vital with the base patch at ``settings.preset``. Raises UserError, also without its package."""
        if reason := self.missing(settings, ""):
            raise UserError(reason)
        from data_pipeline.synths.vital.synth import Vital

        return Vital(settings.spec, read_preset_file(Path(settings.preset)) if settings.preset else None)

    def texts(self, spec: ParamSpec, values: Values) -> dict[str, str]:
        """Continuous values as Vital shows them. Categories have labels in the spec."""
        displays = vital_patch.controls()["displays"]
        return {name: _shown(displays[name], float(values[name])) for name in values if name in displays}

    def read(self, content: bytes) -> tuple[list[FilePatch], list[str]]:
        """The patch of a ``.vital`` file."""
        patch = vital_patch.read_patch(content)
        values, outside = vital_patch.values_in(patch, load_spec("vital"))
        return [FilePatch(*vital_patch.about(patch), "vital", values, outside, content)], []

    def convert(self, content: bytes, ending: str) -> bytes:
        """The same patch, written anew."""
        return vital_patch.write_patch(vital_patch.read_patch(content))

    def preset_files(
        self, spec: ParamSpec, candidates: Sequence[Values], name: str, comment: str, base: bytes | None = None
    ) -> dict[str, bytes]:
        """The first candidate on the base patch, whose wavetables, modulations and all else stay as they are."""
        patch = vital_patch.base_patch() if base is None else vital_patch.read_patch(base)
        patch = vital_patch.with_values(patch, spec, candidates[0])
        return {".vital": vital_patch.write_patch(vital_patch.named(patch, name, comment))}


def _shown(display: Sequence, value: float) -> str:
    scale, factor, offset, unit = display
    return f"{factor * _SCALES[scale](value) + offset:.4g}{unit}"


INSTRUMENT = VitalInstrument()
