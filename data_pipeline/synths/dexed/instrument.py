"""The DX7 as an ``Instrument``: Dexed plays it, and its voices are ``.syx`` files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_pipeline.console.cli import UserError
from data_pipeline.params.groups import Panel
from data_pipeline.params.spec import ParamSpec
from data_pipeline.synths.dexed.syx import BANK_VOICES, read_syx, write_banks, write_single
from data_pipeline.synths.dexed.voice import LARGEST, OPERATORS, Voice
from data_pipeline.synths.instrument import FilePatch, Instrument, Values
from data_pipeline.synths.protocol import Synth, SynthSettings

# The DX7's panel shows these values with a number added.
_OFFSETS = {"detune": -7, "transpose": -24}


class DexedInstrument(Instrument):
    """The DX7: six operators, called ``op_1_eg_rate_1`` and so on, then the values of the whole voice."""

    name = "dexed"
    specs = ("dexed",)
    exact = True
    needs = "dexed"
    extra = "synthjax[dexed]"
    endings = (".syx",)
    writes = (".syx",)
    panel = Panel(
        groups=(
            (r"op_(\d)_", "Operator {}"),
            (r"pitch_eg_", "Pitch EG"),
            (r"lfo_", "LFO"),
            (r"", "Voice"),
        ),
        exchangeable=("Operator {}",),
    )

    def open(self, settings: SynthSettings) -> Synth:
        """Makes an engine. Raises UserError without its package."""
        if reason := self.missing(settings, ""):
            raise UserError(reason)
        from data_pipeline.synths.dexed.synth import Dexed

        return Dexed(settings.spec)

    def texts(self, spec: ParamSpec, values: Values) -> dict[str, str]:
        """The numbers of the DX7's panel. Categories have labels in the spec."""
        shown = {name: _own(name) for name in values if _own(name) in _OFFSETS}
        return {name: str(int(values[name]) + _OFFSETS[own]) for name, own in shown.items()}

    def read(self, content: bytes) -> tuple[list[FilePatch], list[str]]:
        """The voices of a file; values beyond their range become the end of the range, and are named."""
        found = read_syx(content)
        return [_file_patch(voice) for voice in found.voices], found.remarks

    def convert(self, content: bytes, ending: str) -> bytes:
        """The same voices: one alone as a single voice, several as banks of 32. Values are limited as by ``read``."""
        voices = read_syx(content).voices
        return write_single(voices[0]) if len(voices) == 1 else b"".join(write_banks(voices))

    def preset_files(
        self, spec: ParamSpec, candidates: Sequence[Values], name: str, comment: str, base: bytes | None = None
    ) -> dict[str, bytes]:
        """A bank with at most 32 candidates, best first. A voice has ten characters of the name, and no comment."""
        kept = Voice.from_single(base).values if base else {}
        voices = [_voice({**kept, **values}, name) for values in candidates[:BANK_VOICES]]
        return {".syx": write_banks(voices)[0]}

    def banks(self, spec: ParamSpec, answers: Mapping[str, Values]) -> dict[str, bytes]:
        """Banks of 32 answers each."""
        banks = write_banks([_voice(values, name) for name, values in answers.items()])
        return {f"{number}.syx": bank for number, bank in enumerate(banks, 1)}


def _file_patch(voice: Voice) -> FilePatch:
    outside = [f"{name} is {value}, beyond its range" for name, value in voice.beyond_range().items()]
    limited = voice.limited()  # The engine accepts no value beyond its range.
    return FilePatch(voice.name, {}, "dexed", limited.values, outside, limited.single())


def _voice(values: Values, name: str) -> Voice:
    return Voice(name, {own: int(values[own]) for own in LARGEST})


def _own(name: str) -> str:
    """The name of a value without its operator."""
    prefix = name[: len("op_1_")]
    return name.removeprefix(prefix) if prefix in {f"op_{op}_" for op in OPERATORS} else name


INSTRUMENT = DexedInstrument()
