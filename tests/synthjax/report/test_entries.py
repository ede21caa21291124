"""The rows of parameters and the texts that reports show."""

from __future__ import annotations

import numpy as np

from data_pipeline.params.spec import load_spec
from synthjax.report.entries import described, parameter_rows, spread_evenly

SURGE = load_spec("surge_simple")


def rows_by_label(**arguments):
    values = SURGE.decode(np.full(SURGE.width, 0.5)) | {"pitch": 60, "note_start_and_end": (0.25, 1.5)}
    values["a_filter_1_cutoff"] = 60 / 130
    return {(row.group, row.name): row for row in parameter_rows(SURGE, SURGE.encode(values), **arguments)}


def test_values_are_shown_as_the_synthesizer_shows_them() -> None:
    rows = rows_by_label()
    assert rows["Filter 1", "Cutoff"].predicted_text == "440.00 Hz"
    assert rows["Note", "Pitch"].predicted_text == "C4 (60)"
    assert (rows["Note", "Start"].predicted_text, rows["Note", "End"].predicted_text) == ("0.25 s", "1.50 s")


def test_the_truth_stands_beside_the_prediction_where_it_is_known() -> None:
    assert all(row.true_text is None for row in rows_by_label().values())
    true = np.zeros(SURGE.width)
    rows = rows_by_label(true=true)
    assert rows["Filter 1", "Cutoff"].true_text == "13.75 Hz"


def test_both_times_of_the_note_have_its_spread() -> None:
    spread = {parameter.name: 0.1 for parameter in SURGE.parameters}
    assert all(row.spread == 0.1 for row in rows_by_label(spread=spread).values())


def test_settings_within_settings_are_one_text() -> None:
    assert described({"seed": 3, "sampling": {"solver": "rk4", "steps": 5}}) == {
        "Seed": "3",
        "Sampling": "solver rk4, steps 5",
    }


def test_sounds_are_chosen_from_the_best_to_the_worst() -> None:
    assert spread_evenly(np.array([5.0, 1.0, 3.0, 2.0, 4.0]), 3) == [1, 2, 0]
    assert spread_evenly(np.array([5.0, 1.0]), 3) == [1, 0]
