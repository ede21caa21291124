"""Drawing rows: each is its own label, a function of (seed, index, attempt) alone, and distributed as the spec says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from data_pipeline.params.counter_rng import MAX_SEED, uniforms
from data_pipeline.params.kinds import MIN_NOTE_SECONDS, Categorical, Continuous, Discrete, NoteDuration, Parameter
from data_pipeline.params.spec import ParamSpec, bundled_specs, load_spec

# The rounding error of a float32 column in [0, 1].
ROUNDING = 2.0**-24
LARGEST = 1.0 - 2.0**-53
KINDS = (
    Continuous("level", -2.0, 0.5),
    Continuous("drive", 0.1, 0.7, constant_value=0.3, constant_probability=0.4),
    Categorical("shape", ("off", "sine", "saw", "never"), (0.0, 0.3, 0.6, 1.0), (0.0, 1.0, 2.5, 0.0)),
    Discrete("pitch", 48, 72),
    Discrete("wide", -(1 << 20), 1 << 20),
    NoteDuration("note_start_and_end", 4.0),
    NoteDuration("short", 0.011),
)
SMALL = ParamSpec("small", KINDS[:3], (KINDS[3], KINDS[5]))

unit = st.floats(0.0, LARGEST) | st.sampled_from([0.0, LARGEST])
numbers = st.integers(0, MAX_SEED)


def assert_own_label(parameter: Parameter, columns: NDArray[np.floating]) -> None:
    """float32 columns decode to a legal value that encodes to the same columns."""
    row = columns.astype(np.float32)
    assert row.shape == (parameter.width,)
    assert np.all((row >= 0) & (row <= 1))
    again = parameter.encode(parameter.decode(row)).astype(np.float32)  # type: ignore[arg-type]
    # The 10 ms between two rounded note times may themselves be rounded away, and are put back.
    np.testing.assert_allclose(again, row, rtol=0, atol=(2 if isinstance(parameter, NoteDuration) else 1) * ROUNDING)


def column(parameter: Parameter, count: int, seed: int = 1) -> NDArray[np.float64]:
    """``count`` samples (count, width) of one parameter."""
    return parameter.sample(uniforms(seed, range(count), [0] * count, parameter.draws))


@pytest.mark.parametrize("name", bundled_specs())
def test_sampled_rows_are_their_own_labels(name: str) -> None:
    spec = load_spec(name)
    rows = spec.sample(11, range(100), [0] * 100)
    assert rows.dtype == np.float32
    assert rows.shape == (100, spec.width)
    for row in rows:
        for parameter in spec.parameters:
            assert_own_label(parameter, row[spec.slices[parameter.name]])
        np.testing.assert_allclose(spec.encode(spec.decode(row)), row, rtol=0, atol=2 * ROUNDING)


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(KINDS), st.lists(st.tuples(unit, unit), min_size=1, max_size=5))
def test_any_uniform_numbers_give_legal_columns(parameter: Parameter, drawn: list[tuple[float, float]]) -> None:
    columns = parameter.sample(np.array(drawn)[:, : parameter.draws])
    assert len(columns) == len(drawn)
    for row in columns:
        assert_own_label(parameter, row)
        if isinstance(parameter, Categorical):
            assert parameter.weights[int(np.argmax(row))] > 0


@pytest.mark.parametrize("name", bundled_specs())
@pytest.mark.parametrize("edge", [0.0, LARGEST])
def test_edges_of_the_uniform_numbers(name: str, edge: float) -> None:
    for parameter in load_spec(name).parameters:
        (columns,) = parameter.sample(np.full((1, parameter.draws), edge))
        assert_own_label(parameter, columns)
        if isinstance(parameter, Categorical):
            weight = parameter.weights[int(np.argmax(columns))]
            possible = np.flatnonzero(parameter.weights)
            assert weight > 0
            assert columns[possible[0] if edge == 0.0 else possible[-1]] == 1.0


def test_edges_reach_the_ends_of_the_range() -> None:
    lowest, highest = np.zeros((1, 2)), np.full((1, 2), LARGEST)
    level, drive, _, pitch, wide, note, _ = KINDS
    assert (level.sample(lowest[:, :1])[0], level.sample(highest[:, :1])[0]) == (0.0, LARGEST)
    assert drive.decode(drive.sample(lowest)[0]) == pytest.approx(0.3)
    assert drive.decode(drive.sample(highest)[0]) == pytest.approx(0.7)
    for integers in (pitch, wide):
        assert integers.decode(integers.sample(lowest[:, :1])[0]) == integers.min
        assert integers.decode(integers.sample(highest[:, :1])[0]) == integers.max
    assert note.decode(note.sample(lowest)[0]) == pytest.approx((0.0, 0.01))
    assert note.decode(note.sample(highest)[0]) == pytest.approx((3.99, 4.0))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(numbers, st.lists(st.tuples(numbers, st.integers(0, 300)), min_size=1, max_size=6), st.randoms())
def test_row_depends_on_seed_index_and_attempt_alone(seed: int, pairs: list[tuple[int, int]], random: object) -> None:
    together = dict(zip(pairs, SMALL.sample(seed, *zip(*pairs, strict=True)), strict=True))
    shuffled = pairs[::-1]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for pair, row in zip(shuffled, SMALL.sample(seed, *zip(*shuffled, strict=True)), strict=True):
        np.testing.assert_array_equal(row, together[pair])
    for (index, attempt), row in together.items():
        np.testing.assert_array_equal(SMALL.sample(seed, [index], [attempt])[0], row)


def test_seeds_indices_and_attempts_are_streams_of_their_own() -> None:
    near = [0, 1, 2, 2**32, 2**32 + 1, MAX_SEED]
    keys = [(seed, index, attempt) for seed in near for index in near for attempt in near]
    drawn = np.concatenate([uniforms(seed, [index], [attempt], 9) for seed, index, attempt in keys])
    assert len(np.unique(drawn)) == drawn.size
    np.testing.assert_array_equal(uniforms(5, [7], [1], 4), uniforms(5, [7], [1], 9)[:, :4])


def test_no_rows_are_no_error() -> None:
    assert SMALL.sample(1, [], []).shape == (0, SMALL.width)


@pytest.mark.parametrize("numbers", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (2**63, 0, 0), (0, 2**63, 0), (0, 0, 2**63)])
def test_numbers_beyond_63_bits_are_refused(numbers: tuple[int, int, int]) -> None:
    seed, index, attempt = numbers
    with pytest.raises(ValueError, match="must lie in"):
        uniforms(seed, [index], [attempt], 1)


def test_as_many_attempts_as_indices() -> None:
    with pytest.raises(ValueError, match="zip"):
        SMALL.sample(1, [0, 1], [0])


def test_uniform_numbers_are_uniform_and_below_one() -> None:
    drawn = uniforms(3, range(2000), [0] * 2000, 5)
    assert drawn.min() >= 0.0
    assert drawn.max() <= LARGEST
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 0.01
    # All 53 bits are random, down to the last.
    assert (drawn * 2.0**53 % 2).mean() == pytest.approx(0.5, abs=0.02)


def test_parameters_are_independent() -> None:
    """Every parameter has uniform numbers of its own: otherwise two would be correlated."""
    parameters = tuple(Continuous(str(number), 0.0, 1.0, 0.5, 0.2 * (number % 2)) for number in range(6))
    rows = ParamSpec("independent", parameters, KINDS[3:4]).sample(2, range(3000), [0] * 3000)
    correlations = np.corrcoef(rows.T) - np.eye(7)
    assert np.abs(correlations).max() < 0.07


def test_categories_are_drawn_by_weight() -> None:
    weights = (0.0, 1.0, 2.5, 0.0, 4.0, 0.5, 0.0)
    parameter = Categorical("shape", tuple("abcdefg"), tuple(np.arange(7.0)), weights)
    drawn = column(parameter, 8000)
    assert np.all(drawn.sum(axis=1) == 1)
    counts, possible = drawn.sum(axis=0), np.flatnonzero(weights)
    assert counts.sum() == counts[possible].sum()
    expected = 8000 * np.asarray(weights)[possible] / sum(weights)
    assert stats.chisquare(counts[possible], expected).pvalue > 0.01


def test_weights_may_be_as_small_as_numbers_get() -> None:
    """The product of such a weight and a number below 1 rounds up to the weight."""
    parameter = Categorical("shape", tuple("abc"), (0.0, 1.0, 2.0), (0.0, 5e-324, 0.0))
    for edge in (0.0, 0.5, LARGEST):
        np.testing.assert_array_equal(parameter.sample(np.array([[edge]])), [[0, 1, 0]])


def test_pitches_are_equally_likely_integers() -> None:
    pitch = Discrete("pitch", 48, 72)
    decoded = [pitch.decode(row) for row in column(pitch, 5000)]
    counts = np.bincount(decoded, minlength=73)
    assert counts[:48].sum() == 0
    assert stats.chisquare(counts[48:]).pvalue > 0.01


def test_point_mass_and_the_rest() -> None:
    drive = KINDS[1]
    drawn = column(drive, 6000)[:, 0]
    at_constant = drawn == drive.encode(0.3)[0]
    assert stats.binomtest(int(at_constant.sum()), 6000, 0.4).pvalue > 0.01
    assert stats.kstest(drawn[~at_constant], "uniform").pvalue > 0.01
    certain = Continuous("certain", 0.0, 2.0, constant_value=0.5, constant_probability=1.0)
    assert np.all(column(certain, 100) == 0.25)


@pytest.mark.parametrize("max_seconds", [4.0, 0.02])
def test_note_times_are_sorted_and_apart(max_seconds: float) -> None:
    note = NoteDuration("note", max_seconds)
    rows = column(note, 4000).astype(np.float32).astype(np.float64)
    start, end = rows.T * max_seconds
    assert np.all(end - start >= MIN_NOTE_SECONDS - 2 * ROUNDING * max_seconds)
    assert start.min() >= 0.0
    assert end.max() <= max_seconds


def test_note_times_are_two_sorted_uniforms() -> None:
    start, end = column(NoteDuration("note", 1000.0), 4000).T
    assert stats.kstest(start, lambda time: 1 - (1 - time) ** 2).pvalue > 0.01
    assert stats.kstest(end, lambda time: time**2).pvalue > 0.01


def test_stream_never_changes() -> None:
    """Unfinished data sets continue with these rows: if this test fails, correct the code, never the test."""
    bits = [
        [5670708354028104, 895410213674255, 3720446357802643, 6596835278405623, 6076678720380111],
        [1798475102713095, 3255702986168856, 4465854223392877, 8159132346309380, 1925508703424218],
    ]
    np.testing.assert_array_equal(uniforms(2**40 + 3, [5, 2**35], [0, 1], 5) * 2**53, bits)
    row = [0.9307758, 0.28541645, 0.0, 0.0, 1.0, 0.0, 0.7083333, 0.09083856, 0.3415999]
    np.testing.assert_array_equal(SMALL.sample(7, [123456], [2])[0], np.array(row, np.float32))
