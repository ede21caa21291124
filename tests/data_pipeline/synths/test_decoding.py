"""A decoded row: names, headings, values, texts and places of its numbers."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.params.kinds import Categorical, Continuous, Discrete, NoteDuration
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.synths.decoding import DecodedValue, decode_numbers, decode_row, note_name, value_names
from data_pipeline.synths.protocol import NOTE_TIMES, PITCH

OTHER = ParamSpec(
    "other",
    (
        Continuous("env_attack", 0.0, 2.0),
        Categorical("env_on", (False, True), (0.0, 1.0), (1.0, 1.0)),
        Discrete("voices", 1, 9),
    ),
    (Discrete(PITCH, 48, 72), NoteDuration(NOTE_TIMES, 4.0)),
)


def test_a_row_of_an_unknown_synthesizer_is_shown_as_labels_and_numbers() -> None:
    assert decode_row(OTHER, [0.25, 0.1, 0.9, 0.5, 0.5, 0.75, 0.125]) == [
        DecodedValue("env_attack", "env_attack", "Env", "Attack", 0.5, "0.500", 0.25),
        DecodedValue("env_on", "env_on", "Env", "On", 1.0, "True", None),
        DecodedValue("voices", "voices", "Parameters", "Voices", 5, "5", 0.5),
        DecodedValue(PITCH, PITCH, "Note", "Pitch", 60, "C4 (60)", 0.5),
        DecodedValue(NOTE_TIMES, "note_start", "Note", "Start", 0.5, "0.50 s", 0.125),
        DecodedValue(NOTE_TIMES, "note_end", "Note", "End", 3.0, "3.00 s", 0.75),
    ]


@pytest.mark.parametrize("name", ["subtractive", "surge_simple", "surge_xt"])
def test_names_numbers_and_values_agree(name: str) -> None:
    spec = load_spec(name)
    row = np.random.default_rng(0).uniform(-0.2, 1.2, spec.width)
    decoded = decode_row(spec, row)
    assert [one.name for one in decoded] == value_names(spec)
    assert [one.value for one in decoded] == decode_numbers(spec, row)
    assert {one.parameter for one in decoded} == set(spec.slices)
    assert all(one.text for one in decoded)


def test_surge_xts_categories_are_shown_as_its_window_shows_them() -> None:
    spec = load_spec("surge_xt")
    decoded = {one.name: one for one in decode_row(spec, np.zeros(spec.width))}
    shown = decoded["a_filter_configuration"]
    assert (shown.group, shown.label, shown.text, shown.place) == (
        "Filter routing",
        "Filter configuration",
        "Serial 1",
        None,
    )


@pytest.mark.parametrize(("pitch", "name"), [(0, "C-1 (0)"), (61, "C♯4 (61)"), (69, "A4 (69)")])
def test_notes_have_names(pitch: int, name: str) -> None:
    assert note_name(pitch) == name
