"""Headings of parameters, for the bundled synthesizers and for any other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.params.groups import Panel
from data_pipeline.params.kinds import Continuous, Discrete
from data_pipeline.params.spec import ParamSpec, bundled_specs, load_spec
from data_pipeline.synths.choice import instrument_of

# Separators of words, and beginnings of names of known synthesizers, mixed.
NAMES = st.text(st.sampled_from("a_ 1b"), min_size=1, max_size=8) | st.sampled_from(
    ["osc_1_", "filter_", "a_filter_1_", "noise_x", "lfo_10_rate", "fx_a1_mix", "stereo_width"]
)


def headings(spec: ParamSpec) -> dict[str, tuple[str, str]]:
    own = instrument_of(spec)
    return (own.panel if own else Panel()).headings(spec)


def spec_of(*names: str) -> ParamSpec:
    return ParamSpec("other", tuple(Continuous(name, 0.0, 1.0) for name in names), (Discrete("note_pitch", 48, 72),))


def distinct_groups(spec: str) -> list[str]:
    return list(dict.fromkeys(group for group, _ in headings(load_spec(spec)).values()))


@pytest.mark.parametrize("name", bundled_specs())
def test_every_parameter_of_bundled_specs_has_a_place_and_a_name_of_its_own(name: str) -> None:
    spec = load_spec(name)
    names = [parameter.name for parameter in spec.parameters]
    assert list(headings(spec)) == names
    assert len(set(headings(spec).values())) == len(names)


def test_subtractive_is_grouped_by_module() -> None:
    assert distinct_groups("subtractive") == [
        "Oscillator 1",
        "Oscillator 2",
        "Oscillator 3",
        "Noise",
        "Filter",
        "Amplifier",
        "Output",
        "Note",
    ]


def test_surge_xt_is_grouped_by_the_panels_of_its_window() -> None:
    assert distinct_groups("surge_xt") == [
        "Amplifier envelope",
        "Filter envelope",
        "Filter routing",
        "Filter 1",
        "Filter 2",
        "Waveshaper",
        "Mixer",
        "Oscillator 1",
        "Oscillator 2",
        "Oscillator 3",
        "Oscillator FM and drift",
        *(f"LFO {number}" for number in range(1, 7)),
        "Output",
        "Effect A1",
        "Effect A2",
        "Effect A3",
        "Note",
    ]


@pytest.mark.parametrize(
    ("parameter", "group", "short"),
    [
        ("a_osc_2_volume", "Mixer", "Osc 2 volume"),
        ("a_osc_2_unison_detune", "Oscillator 2", "Unison detune"),
        ("a_filter_1_feg_mod_amount", "Filter 1", "FEG mod amount"),
        ("a_ring_modulation_1x2_route", "Mixer", "Ring modulation 1x2 route"),
        ("fx_a3_eq_lf_damping", "Effect A3", "EQ LF damping"),
        ("a_vca_gain", "Output", "VCA gain"),
        ("note_start_and_end", "Note", "Start and end"),
    ],
)
def test_names_of_surge_xt(parameter: str, group: str, short: str) -> None:
    assert headings(load_spec("surge_xt"))[parameter] == (group, short)


def test_another_synthesizer_is_grouped_by_common_first_words() -> None:
    spec = spec_of("env_1_attack", "env_1_decay", "env_2_attack", "drive", "Master Volume", "Master Tune")
    assert list(headings(spec).values()) == [
        ("Env 1", "Attack"),
        ("Env 1", "Decay"),
        ("Parameters", "Env 2 attack"),
        ("Parameters", "Drive"),
        ("Master", "Volume"),
        ("Master", "Tune"),
        ("Note", "Pitch"),
    ]


@given(st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_any_name_has_a_group_and_is_never_empty(names: list[str]) -> None:
    spec = spec_of(*names)
    assert list(headings(spec)) == [*names, "note_pitch"]
    assert all(group and label for group, label in headings(spec).values())
