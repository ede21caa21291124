"""The built-in synthesizer: its signal processing against theory, and its patches as a listener hears them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLE_RATE, SAMPLES
from data_pipeline.audio.quality import loudness
from data_pipeline.params.spec import load_spec
from data_pipeline.synths import subtractive_dsp as dsp
from data_pipeline.synths.protocol import Audio, Synth
from data_pipeline.synths.subtractive import CEILING, Subtractive
from tests.data_pipeline.signals import centroid, decibels, rms, seconds, spectrum
from tests.helpers import REPOSITORY

SPEC = load_spec("subtractive")
SYNTH: Synth = Subtractive()
CORNERS = npst.arrays(np.float32, SPEC.width, elements=st.sampled_from([0.0, 1.0]))


def patch(**changes: Any) -> dict[str, Any]:
    """Three equal saws in the middle, an open filter, a note from 1 s to 3 s that starts and ends at once."""
    values: dict[str, Any] = {
        "noise_level": -60.0,
        "filter_cutoff": 60.0,
        "filter_resonance": 0.0,
        "filter_env_amount": 0.0,
        "filter_env_decay": 0.0,
        "amp_attack": 0.0,
        "amp_decay": 0.0,
        "amp_sustain": 0.0,
        "amp_release": 0.0,
        "stereo_width": 0.0,
        "pitch": 60,
        "note_start_and_end": (1.0, 3.0),
    }
    oscillator = {"shape": 0.0, "level": -12.0, "octave": 0.0, "fine": 0.0, "pan": 0.0}
    for number in (1, 2, 3):
        values |= {f"osc_{number}_{name}": value for name, value in oscillator.items()}
    return values | changes


def all_oscillators(**settings: float) -> dict[str, float]:
    return {f"osc_{number}_{name}": value for number in (1, 2, 3) for name, value in settings.items()}


def render(**changes: Any) -> Audio:
    return SYNTH.render(patch(**changes))


def sampled(count: int) -> list[dict[str, Any]]:
    return [SPEC.decode(row) for row in SPEC.sample(3, range(count), [0] * count)]


def held(audio: Audio, start: float = 1.5, end: float = 2.5) -> Audio:
    return audio[:, int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]


# The spec


def test_the_spec_is_34_columns_with_three_equal_oscillators() -> None:
    assert SPEC.width == 34
    assert len(SPEC.column_permutations()) == 6
    names = [name for name in SPEC.column_names if name.startswith("osc_1_")]
    assert len(names) == 7
    first, second, third = (
        [vars(p) | {"name": ""} for p in SPEC.synth_params if p.name.startswith(f"osc_{number}_")]
        for number in (1, 2, 3)
    )
    assert first == second == third


def test_few_sampled_patches_are_next_to_silent() -> None:
    quiet = [loudness(SYNTH.render(values)) < -55.0 for values in sampled(40)]
    assert sum(quiet) < 4


# Reproducibility


def test_repeats_are_equal_bit_for_bit_whatever_came_before() -> None:
    first, second = sampled(2)
    audio = SYNTH.render(first)
    assert audio.shape == (2, SAMPLES)
    assert audio.dtype == np.float32
    SYNTH.render(second)
    SYNTH.verify()
    assert np.array_equal(SYNTH.render(first), audio)
    assert np.array_equal(Subtractive().render(first), audio)


def test_another_process_renders_the_same_bits() -> None:
    program = (
        "import hashlib; from data_pipeline.params.spec import load_spec;"
        "from data_pipeline.synths.subtractive import Subtractive; spec = load_spec('subtractive');"
        "rows = spec.sample(3, range(3), [0] * 3); synth = Subtractive();"
        "print(hashlib.sha256(b''.join(synth.render(spec.decode(row)).tobytes() for row in rows)).hexdigest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    expected = hashlib.sha256(b"".join(SYNTH.render(values).tobytes() for values in sampled(3))).hexdigest()
    assert result.stdout.strip() == expected


def test_swapped_oscillators_sound_the_same_bit_for_bit() -> None:
    row = SPEC.sample(3, [4], [0])[0]  # One whose samples show the order of addition, rare as that is in float32.
    audio = SYNTH.render(SPEC.decode(row))
    for permutation in SPEC.column_permutations()[1:]:
        assert not np.array_equal(row[permutation], row)
        assert np.array_equal(SYNTH.render(SPEC.decode(row[permutation])), audio)


# Eight samples of either channel, every 3001st from 0.1 s after note on. Other machines round differently.
GOLDEN_PATCHES = {
    "plain": patch(),
    "bright": patch(
        osc_1_octave=-1.0,
        osc_2_shape=1.0,
        osc_2_fine=13.0,
        osc_3_shape=2.0,
        osc_3_octave=1.0,
        osc_1_pan=-0.7,
        osc_3_pan=0.4,
        filter_cutoff=20.0,
        filter_resonance=1.0,
        filter_env_amount=48.0,
        filter_env_decay=0.7,
        stereo_width=0.8,
        pitch=72,
        amp_sustain=-10.0,
        amp_decay=0.8,
    ),
    "soft": patch(
        noise_level=-12.0, filter_cutoff=6.0, filter_resonance=0.5, amp_attack=0.9, stereo_width=0.3, pitch=48
    ),
}
GOLDEN_SAMPLES: dict[str, list[list[float]]] = {
    "plain": [
        [0.2479882, -0.3181647, -0.1849847, -0.0443592, 0.0968617, 0.2356223, -0.3299172, -0.1982951],
        [0.2480433, -0.3185182, -0.1856670, -0.0452491, 0.0973572, 0.2353685, -0.3300201, -0.1979670],
    ],
    "bright": [
        [-0.0038313, -0.0218973, 0.0256734, -0.0235405, 0.0234534, 0.0202912, -0.0439368, -0.0137518],
        [-0.0230692, -0.0980135, 0.0039031, 0.0609461, 0.0251285, -0.0227647, -0.0308718, -0.0123377],
    ],
    "soft": [
        [-0.0293594, -0.0398253, -0.0392515, -0.0192612, 0.0211100, 0.0773609, 0.1371354, 0.1239053],
        [-0.0216848, -0.0568667, -0.0774820, -0.0567577, 0.0394291, 0.1460281, 0.1962335, 0.1404870],
    ],
}


@pytest.mark.parametrize("name", GOLDEN_PATCHES)
def test_metric_audio_agrees_with_other_machines(name: str) -> None:
    samples = SYNTH.render(GOLDEN_PATCHES[name])[:, 48510::3001][:, :8]
    np.testing.assert_allclose(samples, GOLDEN_SAMPLES[name], rtol=0, atol=1e-5)


# Any patch


@settings(max_examples=15, deadline=None, derandomize=True)
@given(CORNERS)
def test_any_corner_of_the_ranges_stays_finite_and_under_the_ceiling(row: NDArray[np.float32]) -> None:
    audio = SYNTH.render(SPEC.decode(row))
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() <= CEILING < 1.0


def test_the_loudest_patch_stays_under_the_ceiling() -> None:
    audio = render(**all_oscillators(level=0.0), filter_cutoff=6.0, noise_level=-12.0, stereo_width=1.0)
    assert 0.9 < np.abs(audio).max() <= CEILING


@pytest.mark.parametrize("times", [(0.0, 0.01), (3.99, 4.0), (4.0, 4.0), (0.0, 4.0)])
def test_notes_at_the_edges_of_the_sound(times: tuple[float, float]) -> None:
    audio = render(note_start_and_end=times)
    assert audio.shape == (2, SAMPLES)
    assert audio.any() == (times[0] < 4.0)


def test_a_missing_value_is_named() -> None:
    values = patch()
    del values["amp_release"]
    with pytest.raises(KeyError, match="amp_release"):
        SYNTH.render(values)


# The note


@pytest.mark.parametrize("width", [0.0, 1.0])
def test_sound_starts_with_the_note_and_dies_after_it(width: float) -> None:
    audio = render(stereo_width=width, note_start_and_end=(1.5, 2.0))
    sounding = np.flatnonzero(audio.any(axis=0)) / SAMPLE_RATE
    assert 1.5 <= sounding[0] < 1.501
    # From 0 dB to -100 dB at 60 dB in 20 ms, and the chorus's delay.
    assert 2.02 < sounding[-1] < 2.0 + 0.02 * 100 / 60 + 0.007
    assert not audio[:, : int(1.5 * SAMPLE_RATE)].any()


@pytest.mark.parametrize(("pitch", "hertz"), [(48, 130.81), (69, 440.0), (72, 523.25)])
def test_the_fundamental_is_the_note(pitch: int, hertz: float) -> None:
    frequencies, magnitude = spectrum(held(render(pitch=pitch, filter_cutoff=6.0))[0])
    assert frequencies[np.argmax(magnitude)] == pytest.approx(hertz, abs=1.0)


def test_octave_and_fine_move_the_fundamental() -> None:
    changes = all_oscillators(octave=1.0, fine=25.0)
    frequencies, magnitude = spectrum(held(render(pitch=69, **changes), 1.1, 2.9)[0])
    assert frequencies[np.argmax(magnitude)] == pytest.approx(880.0 * 2 ** (25 / 1200), abs=0.6)


# The oscillators


def test_level_is_in_decibels() -> None:
    quiet, loud = (held(render(**all_oscillators(level=level)))[0] for level in (-12.0, -9.0))
    _, faint = spectrum(quiet)
    _, strong = spectrum(loud)
    # Soft clipping takes some of the 3 dB.
    assert 2.0 < decibels(strong.max() / faint.max()) < 3.0


def test_fine_tuning_beats() -> None:
    """+-10 cents about 440 Hz are 5.08 Hz apart: two equal oscillators cancel at 98 and 295 ms, add up at 197 ms."""
    detuned = render(
        pitch=69, **all_oscillators(shape=2.0), osc_1_fine=10.0, osc_2_fine=-10.0, osc_3_pan=1.0, filter_cutoff=6.0
    )[0]
    trough, peak = (rms(detuned[int(t * SAMPLE_RATE) :][:441]) for t in (1.0985, 1.1967))
    assert decibels(trough / peak) < -20.0


# Left and right


@pytest.mark.parametrize("pan", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_pan_keeps_the_power(pan: float) -> None:
    left, right = (rms(channel) for channel in held(render(**all_oscillators(pan=pan), pitch=48, filter_cutoff=6.0)))
    angle = np.pi / 4 * (1 + pan)
    assert left / np.hypot(left, right) == pytest.approx(np.cos(angle), abs=0.02)
    assert right / np.hypot(left, right) == pytest.approx(np.sin(angle), abs=0.02)


def test_width_is_heard_in_the_patch() -> None:
    narrow, wide = (held(render(stereo_width=width, filter_cutoff=30.0)) for width in (0.0, 1.0))
    assert rms(narrow[0] - narrow[1]) < 0.01 * rms(narrow)
    assert rms(wide[0] - wide[1]) > 0.5 * rms(wide)


def test_noise_level_fills_the_gaps_between_harmonics() -> None:
    floors = []
    for level in (-40.0, -20.0):
        hertz, magnitude = spectrum(held(render(noise_level=level, pitch=69))[0])
        floors.append(np.median(magnitude[(hertz > 500) & (hertz < 800)]))
    assert decibels(floors[1] / floors[0]) == pytest.approx(20.0, abs=1.0)


# The filter


def test_cutoff_brightens() -> None:
    centroids = [centroid(held(render(filter_cutoff=cutoff))[0]) for cutoff in (6.0, 24.0, 42.0, 60.0)]
    assert centroids == sorted(centroids)
    assert centroids[-1] > 5 * centroids[0]


def test_a_cutoff_beyond_hearing_leaves_the_filter_open() -> None:
    """Five octaves above C5, and four more by the envelope, would be beyond half the sample rate."""
    audio = render(pitch=72, filter_cutoff=60.0, filter_env_amount=48.0, filter_env_decay=1.0, filter_resonance=1.0)
    hertz, magnitude = spectrum(held(audio, 1.1, 1.6)[0])
    first, tenth = (magnitude[np.abs(hertz - number * 523.25) < 10].max() for number in (1, 10))
    assert tenth / first == pytest.approx(0.1, rel=0.2)


def test_cutoff_follows_the_note() -> None:
    low, high = (centroid(held(render(filter_cutoff=12.0, pitch=pitch))[0]) for pitch in (48, 60))
    assert high / low == pytest.approx(2.0, rel=0.1)


def test_resonance_makes_a_peak_at_the_cutoff() -> None:
    """Two octaves above A3 is its fourth harmonic: the peak lifts it against its neighbours, by at most 21.8 dB."""
    gains = []
    for resonance in (0.0, 1.0):
        audio = render(pitch=57, filter_cutoff=24.0, filter_resonance=resonance)
        _, magnitude = spectrum(held(audio)[0])
        gains.append(decibels(magnitude[878:883].max() / magnitude[218:223].max()))
    assert gains[1] - gains[0] == pytest.approx(decibels(16.0 / dsp.BUTTERWORTH_Q[1]), abs=1.5)


def test_half_of_the_resonance_is_taken_from_the_level() -> None:
    levels = [rms(held(render(pitch=48, filter_resonance=resonance))) for resonance in (0.0, 1.0)]
    assert decibels(levels[1] / levels[0]) == pytest.approx(decibels(dsp.BUTTERWORTH_Q[1] / 16.0) / 2, abs=1.0)


def test_filter_envelope_sweeps_down_within_its_decay() -> None:
    """Knob at 0.5: 60 dB in 0.45 s."""
    swept = render(filter_cutoff=6.0, filter_env_amount=48.0, filter_env_decay=0.5)[0]
    still = render(filter_cutoff=6.0)[0]
    times = [1.01, 1.1, 1.2, 1.6]
    ratios = [
        centroid(swept[int(t * SAMPLE_RATE) :][:2205]) / centroid(still[int(t * SAMPLE_RATE) :][:2205]) for t in times
    ]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 2.5
    assert ratios[-1] == pytest.approx(1.0, abs=0.01)


# The amplitude envelope


def loudness_at(audio: Audio, time: float) -> float:
    return decibels(rms(audio[:, seconds(time) : seconds(time + 0.02)]))


def test_knobs_set_the_envelopes_times() -> None:
    """Attack takes 2 ms at 0 and 1 s at 1; release at 1 falls by 20 dB/s; a short decay leaves the sustain."""
    rising = render(amp_attack=1.0)
    assert loudness_at(rising, 2.5) - loudness_at(rising, 1.4) == pytest.approx(decibels(1 / 0.41), abs=0.4)
    assert np.abs(rising).max() == pytest.approx(np.abs(rising[:, seconds(1.99) :]).max())
    at_once = render(pitch=72)
    assert loudness_at(at_once, 1.002) == pytest.approx(loudness_at(at_once, 1.1), abs=0.2)
    fallen = render(amp_sustain=-20.0)
    assert loudness_at(fallen, 1.5) - loudness_at(render(amp_sustain=-30.0), 1.5) == pytest.approx(10.0, abs=0.2)
    # Level is low after a second: clipping is not heard.
    ringing = render(amp_release=1.0, amp_sustain=-20.0, note_start_and_end=(1.0, 2.0))
    assert loudness_at(ringing, 2.2) - loudness_at(ringing, 3.2) == pytest.approx(20.0, abs=0.5)
    short = render(amp_decay=0.0, amp_sustain=-30.0)
    long = render(amp_decay=1.0, amp_sustain=-30.0)
    # Over 0.1 s the short decay passes 60 dB, the long one 1.5 dB.
    assert loudness_at(long, 1.1) - loudness_at(short, 1.1) == pytest.approx(30.0 - 1.5, abs=2.0)
