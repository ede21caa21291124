"""Groups of parameters: those of the bundled synthesizers by heart, those of any other by their names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.param_groups import groups, short_names
from data_pipeline.param_kinds import Continuous, Discrete
from data_pipeline.param_spec import ParamSpec, bundled_specs, load_spec

# What splits names into words, and what begins the names of known synthesizers, mixed with anything else.
NAMES = st.text(st.sampled_from("a_ 1b"), min_size=1, max_size=8) | st.sampled_from(
    ["osc_1_", "filter_", "a_filter_1_", "noise_x", "lfo_10_rate", "fx_a1_mix", "stereo_width"]
)


def spec_of(*names: str) -> ParamSpec:
    return ParamSpec("other", tuple(Continuous(name, 0.0, 1.0) for name in names), (Discrete("note_pitch", 48, 72),))


@pytest.mark.parametrize("name", bundled_specs())
def test_every_parameter_of_bundled_specs_has_a_place_and_a_name_of_its_own(name: str) -> None:
    spec = load_spec(name)
    names = [parameter.name for parameter in spec.parameters]
    assert list(groups(spec)) == list(short_names(spec)) == names
    assert len({(groups(spec)[each], short_names(spec)[each]) for each in names}) == len(names)


def test_subtractive_is_grouped_by_module() -> None:
    assert list(dict.fromkeys(groups(load_spec("subtractive")).values())) == [
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
    assert list(dict.fromkeys(groups(load_spec("surge_xt")).values())) == [
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
    spec = load_spec("surge_xt")
    assert (groups(spec)[parameter], short_names(spec)[parameter]) == (group, short)


def test_another_synthesizer_is_grouped_by_common_first_words() -> None:
    spec = spec_of("env_1_attack", "env_1_decay", "env_2_attack", "drive", "Master Volume", "Master Tune")
    assert list(groups(spec).values()) == ["Env 1", "Env 1", "Parameters", "Parameters", "Master", "Master", "Note"]
    assert list(short_names(spec).values()) == [
        "Attack",
        "Decay",
        "Env 2 attack",
        "Drive",
        "Volume",
        "Tune",
        "Pitch",
    ]


@given(st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_any_name_has_a_group_and_is_never_empty(names: list[str]) -> None:
    spec = spec_of(*names)
    assert list(groups(spec)) == [*names, "note_pitch"]
    assert all(groups(spec).values())
    assert all(short_names(spec).values())
