"""Locks: values that every answer has."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.params.spec import load_spec
from synthjax.inference.locks import Locks

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
