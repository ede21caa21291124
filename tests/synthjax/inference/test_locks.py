"""Locks: values that every answer has."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical
from data_pipeline.params.spec import load_spec
from data_pipeline.synths.choice import panel_of
from synthjax.inference.locks import Locks, names_of, parse_locks

SPEC = load_spec("dexed")
ROW = SPEC.sample(0, [0], [0])[0]


def test_rows_get_the_values_and_keep_all_others() -> None:
    values = {"feedback": 4, "note_start_and_end": (0.5, 1.5)}
    locks = Locks(SPEC, values)
    before, after = SPEC.decode(ROW), SPEC.decode(locks.on(ROW))
    assert after == {**before, **values}
    assert np.isnan(locks.known).sum() == SPEC.width - 3
    np.testing.assert_array_equal(Locks(SPEC, {}).on(ROW), ROW)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"op_9_output_level": 3}, "op_9_output_level is no parameter of spec dexed"),
        ({"algorithm": 32}, "algorithm: 32 is none of"),
        ({"note_start_and_end": 1.0}, "note_start_and_end: 1.0 is no value of its kind"),
        ({"feedback": None}, "feedback: None is no value of its kind"),
        (SPEC.decode(ROW), "every parameter is locked"),
    ],
)
def test_locks_that_cannot_be(values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Locks(SPEC, values)


def test_names_are_parameters_patterns_or_words_of_groups() -> None:
    panel = panel_of(SPEC)
    assert names_of("feedback", SPEC, panel) == ["feedback"]
    assert len(names_of("op_1_*", SPEC, panel)) == len(names_of("operator 1", SPEC, panel)) == 21
    assert len(names_of("operators", SPEC, panel)) == 6 * 21
    assert names_of("note", SPEC, panel) == ["pitch", "note_start_and_end"]
    assert names_of("Pitch", SPEC, panel) == ["pitch"]
    for text in ("filters", "", "s"):
        with pytest.raises(UserError, match="its groups are Operator 1"):
            names_of(text, SPEC, panel)


def test_locks_are_read_from_texts() -> None:
    panel, start = panel_of(SPEC), SPEC.decode(ROW)
    texts = ["feedback=3", "operator 2", "pitch=60", "note_start_and_end"]
    values, as_found = parse_locks(texts, SPEC, panel, start)
    assert (values.pop("feedback"), values.pop("pitch"), as_found) == (3, 60, {"note_start_and_end"})
    assert values == {name: start[name] for name in names_of("operator 2", SPEC, panel)}
    assert parse_locks(["note_start_and_end=0.5,2"], SPEC, panel, None)[0] == {"note_start_and_end": (0.5, 2.0)}
    surge = load_spec("surge_xt")
    [parameter] = [one for one in surge.parameters if one.name == "a_osc_1_octave"]
    assert isinstance(parameter, Categorical)
    for label, value in zip(parameter.values, parameter.raw_values, strict=True):
        found, _ = parse_locks([f"a_osc_1_octave={label}"], surge, panel_of(surge), None)
        assert found == {"a_osc_1_octave": value}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("feedback=9", "--lock=feedback=9: feedback: 9.0 is not an integer"),
        ("pitch=high", "--lock=pitch=high: could not convert"),
        ("algorithm", "--lock=algorithm has no value: give --lock=algorithm=VALUE, or a patch to begin with --start"),
    ],
)
def test_texts_that_lock_nothing(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_locks([text], SPEC, panel_of(SPEC), None)
