"""The built-in synthesizer: three oscillators and noise, a resonant low-pass, an envelope, a chorus. Needs no plugin.

    osc 1..3 -> pan -+
    noise -----------+-> low-pass (24 dB an octave) -> amplitude envelope -> width -> soft clipping

Its parameters (``params/specs/subtractive.json``). A knob x on [0, 1] goes exponentially from a to b: a (b/a)^x.

| parameter           | range          | meaning                                                                     |
|---------------------|----------------|-----------------------------------------------------------------------------|
| osc_N_shape         | 0, 1, 2        | saw, square, triangle, of equal power                                       |
| osc_N_level         | -12..0 dB      | level                                                                       |
| osc_N_octave        | -1, 0, 1       | octaves above the note                                                      |
| osc_N_fine          | -25..25 cents  | detuning                                                                    |
| osc_N_pan           | -1..1          | left to right, of constant power                                            |
| noise_level         | -60..-12 dB    | level of white noise, independent in both channels                          |
| filter_cutoff       | 6..60          | semitones above the note, which the filter follows                          |
| filter_resonance    | knob           | quality factor of the peak: 1.31 (flat, Butterworth) to 16                  |
| filter_env_amount   | 0..48          | semitones by which note on raises the cutoff                                |
| filter_env_decay    | knob           | seconds until 1/1000 of that is left: 0.05 to 4                             |
| amp_attack          | knob           | seconds of the rise, a straight line: 0.002 to 1                            |
| amp_decay           | knob           | seconds of a fall by 60 dB towards the sustain level: 0.1 to 4              |
| amp_sustain         | -30..0 dB      | level that a held note falls to                                             |
| amp_release         | knob           | seconds of a fall by 60 dB after the note's end: 0.02 to 3                  |
| stereo_width        | 0..1           | level of the chorus, opposite in both channels                              |
| pitch               | 48..72         | MIDI note number, 69 is 440 Hz                                              |
| note_start_and_end  | 0..4 s         | note on and note off                                                        |

The oscillators are interchangeable: swapping the settings of two gives the very same audio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.audio.contract import CHANNELS, SAMPLE_RATE, SECONDS, VELOCITY
from data_pipeline.params.groups import Panel
from data_pipeline.synths import subtractive_dsp as dsp
from data_pipeline.synths.instrument import Instrument
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH, Audio, SynthSettings

OSCILLATORS = ("osc_1_", "osc_2_", "osc_3_")

# The values of the knobs at 0 and 1: a quality factor, and times in seconds.
RESONANCE_Q = (dsp.BUTTERWORTH_Q[1], 16.0)
FILTER_DECAY = (0.05, 4.0)
ATTACK = (0.002, 1.0)
DECAY = (0.1, 4.0)
RELEASE = (0.02, 3.0)

MAX_CUTOFF = 18000.0  # Hz: at half the sample rate the filter's gain would be infinite.

# A lone saw of full level peaks near 0.45 in the centre; louder patches are rounded off towards the ceiling.
GAIN = 0.4
CEILING = 0.98


class Oscillator(NamedTuple):
    """One oscillator's settings: a wavetable shape, amplitude, hertz, and pan on [-1, 1]."""

    shape: int
    level: float
    frequency: float
    pan: float


class Subtractive:
    """The built-in synthesizer as a ``Synth``. It has no state, so renders do not affect each other."""

    name = "subtractive"
    version = "1.0"

    def render(
        self,
        values: Mapping[str, Any],
        *,
        base: bytes | None = None,
        velocity: int = VELOCITY,
        seconds: float = SECONDS,
    ) -> Audio:
        """Renders raw values of the spec ``subtractive`` to audio (2, T) of magnitude at most 0.98.

        There is no base patch, and the velocity changes nothing. The same values give the same bits with one machine
        and NumPy build, and differ by less than 1e-5 elsewhere. Raises KeyError where a value is missing.
        """
        samples = round(seconds * SAMPLE_RATE)
        start, end = (min(round(time * SAMPLE_RATE), samples - 1) for time in values[NOTE_TIMES])
        envelope = _amplitude(values, held=max(end - start, 1), longest=samples - start)
        n = len(envelope)
        voice = dsp.lowpass(_sources(values, n), _cutoff(values, n), _knob(values, "filter_resonance", RESONANCE_Q))
        voice *= envelope * (GAIN * _resonance_headroom(values))
        tail = min(dsp.LONGEST_DELAY_SAMPLES, samples - start - n)
        voice = dsp.widen(np.pad(voice, ((0, 0), (0, tail))), values["stereo_width"])
        audio = np.zeros((CHANNELS, samples), np.float32)
        audio[:, start : start + n + tail] = CEILING * np.tanh(voice)
        return audio

    def verify(self) -> None:
        """Does nothing: the synthesizer holds no patch."""

    def preset(self) -> None:
        """Returns None: no plugin host loads the synthesizer."""


class SubtractiveInstrument(Instrument):
    """The built-in synthesizer as an ``Instrument``."""

    name = "subtractive"
    specs = ("subtractive",)
    exact = True
    panel = Panel(
        groups=(
            (r"osc_(\d+)_", "Oscillator {}"),
            (r"noise_", "Noise"),
            (r"filter_", "Filter"),
            (r"amp_", "Amplifier"),
            (r"(?=stereo_width$)", "Output"),
        ),
        exchangeable=("Oscillator {}",),
    )

    def open(self, settings: SynthSettings) -> Subtractive:
        """Opens the synthesizer; it needs no settings."""
        return Subtractive()


INSTRUMENT = SubtractiveInstrument()


def _sources(values: Mapping[str, Any], n: int) -> dsp.Signal:
    """Oscillators and noise (2, n) before the filter."""
    mixed = _decibels(values["noise_level"]) * dsp.noise()[:, :n]
    # Sorted, so that rounding does not depend on the order of interchangeable oscillators.
    for shape, level, frequency, pan in sorted(_oscillator(values, prefix) for prefix in OSCILLATORS):
        wave = dsp.oscillator(shape, frequency, n)
        angle = math.pi / 4 * (1.0 + pan)
        mixed[0] += level * math.cos(angle) * wave
        mixed[1] += level * math.sin(angle) * wave
    return mixed


def _oscillator(values: Mapping[str, Any], prefix: str) -> Oscillator:
    semitones = 12.0 * values[prefix + "octave"] + values[prefix + "fine"] / 100.0
    return Oscillator(
        shape=round(values[prefix + "shape"]),
        level=_decibels(values[prefix + "level"]),
        frequency=_hertz(values[PITCH] + semitones),
        pan=values[prefix + "pan"],
    )


def _cutoff(values: Mapping[str, Any], n: int) -> dsp.Signal:
    """The filter's cutoff (n,) in hertz, from note on."""
    seconds = np.arange(n) / SAMPLE_RATE
    decay = _knob(values, "filter_env_decay", FILTER_DECAY)
    octaves = values["filter_env_amount"] / 12.0 * np.exp(-dsp.FALL / decay * seconds)
    return np.minimum(_hertz(values[PITCH] + values["filter_cutoff"]) * np.exp2(octaves), MAX_CUTOFF)


def _amplitude(values: Mapping[str, Any], held: int, longest: int) -> dsp.Signal:
    """The amplitude envelope (n,) from note on to silence or the sound's end."""
    return dsp.adsr(
        attack=_knob(values, "amp_attack", ATTACK),
        decay=_knob(values, "amp_decay", DECAY),
        sustain=_decibels(values["amp_sustain"]),
        release=_knob(values, "amp_release", RELEASE),
        held=held,
        longest=longest,
    )


def _resonance_headroom(values: Mapping[str, Any]) -> float:
    """The factor that lowers the level by half of the resonance peak, in dB: a peak may have 22 dB."""
    return math.sqrt(RESONANCE_Q[0] / _knob(values, "filter_resonance", RESONANCE_Q))


def _knob(values: Mapping[str, Any], name: str, ends: tuple[float, float]) -> float:
    low, high = ends
    return low * (high / low) ** values[name]


def _decibels(level: float) -> float:
    return 10.0 ** (level / 20.0)


def _hertz(note: float) -> float:
    return 440.0 * 2.0 ** ((note - 69.0) / 12.0)
