"""Parameter metrics on rows of the bundled specs and of a small one, against plain loops."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest

from data_pipeline.params.kinds import Categorical, Continuous, Discrete, NoteDuration
from data_pipeline.params.spec import ParamSpec, load_spec
from synthjax.metrics.parameters import Summary, per_parameter_mse, row_metrics, summarise, swap_to_best

BUNDLED = ["surge_simple", "surge_xt"]
NOTE = (Discrete("pitch", 48, 72), NoteDuration("note_start_and_end", 4.0))
PLAIN = ParamSpec("plain", (Continuous("gain", 0.0, 1.0), Continuous("pan", -1.0, 1.0)), NOTE)
CHOICE = ParamSpec("choice", (Categorical("wave", ("a", "b", "c"), (0.0, 0.5, 1.0), (1.0,) * 3),), NOTE)


def random_rows(spec: ParamSpec, rows: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(rows, spec.width)).astype(np.float32)


def with_oscillators(row: np.ndarray, spec: ParamSpec, order: tuple[int, int, int]) -> np.ndarray:
    """The row with oscillator ``order[i]`` in place i, found by the names of its columns."""
    names, out = list(spec.column_names), row.copy()
    for place, source in enumerate(order, start=1):
        for column, name in enumerate(names):
            if name.startswith(f"a_osc_{place}_"):
                out[column] = row[names.index(name.replace(f"a_osc_{place}_", f"a_osc_{source}_", 1))]
    return out


ORDERS = [(1, 2, 3), (2, 1, 3), (2, 3, 1), (3, 1, 2)]


@pytest.mark.parametrize("name", BUNDLED)
def test_rows_with_exchanged_oscillators_are_right_after_the_best_swap(name: str) -> None:
    spec = load_spec(name)
    true = random_rows(spec)
    predicted = np.stack([with_oscillators(row, spec, order) for row, order in zip(true, ORDERS, strict=True)])
    np.testing.assert_array_equal(swap_to_best(predicted, true, spec), true)
    metrics = row_metrics(predicted, true, spec)
    np.testing.assert_array_equal(metrics["mse_best_swap"], 0.0)
    assert (metrics["mse"] > 0).tolist() == [False, True, True, True]
    if name == "surge_xt":  # The other has no categories.
        np.testing.assert_array_equal(metrics["category_accuracy_best_swap"], 1.0)
        assert (metrics["category_accuracy"] < 1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("name", BUNDLED)
def test_best_swap_is_the_smallest_error_of_all_orders(name: str) -> None:
    spec = load_spec(name)
    predicted, true = random_rows(spec, 3, seed=1), random_rows(spec, 3, seed=2)
    orders = [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)]
    metrics = row_metrics(predicted, true, spec)
    for i in range(3):
        errors = [np.mean((np.float64(with_oscillators(predicted[i], spec, o)) - true[i]) ** 2) for o in orders]
        assert metrics["mse_best_swap"][i] == pytest.approx(min(errors), rel=1e-5)
        assert metrics["mse"][i] == pytest.approx(errors[0], rel=1e-5)


@pytest.mark.parametrize("name", [*BUNDLED, "subtractive"])
def test_metrics_are_one_finite_figure_a_row(name: str) -> None:
    spec = load_spec(name)
    metrics = row_metrics(random_rows(spec, 5, seed=1), random_rows(spec, 5), spec)
    names = ["mse", "pitch_within_semitone"] + ["category_accuracy"] * (name in ("surge_xt", "subtractive"))
    assert set(metrics) == {*names, *(f"{name}_best_swap" for name in names)}
    for values in metrics.values():
        assert values.shape == (5,)
        assert np.isfinite(values).all()


def test_specs_without_interchangeable_parts_or_categories_have_no_such_metrics() -> None:
    assert set(row_metrics(random_rows(PLAIN), random_rows(PLAIN), PLAIN)) == {"mse", "pitch_within_semitone"}


def test_category_accuracy_is_the_share_of_parameters_with_the_same_largest_column() -> None:
    spec = load_spec("surge_xt")
    categories = [p.name for p in spec.parameters if isinstance(p, Categorical)]
    predicted, true = random_rows(spec, 6, seed=1), random_rows(spec, 6, seed=2)
    for i, accuracy in enumerate(row_metrics(predicted, true, spec)["category_accuracy"]):
        decoded = spec.decode(predicted[i]), spec.decode(true[i])
        assert accuracy == pytest.approx(np.mean([decoded[0][c] == decoded[1][c] for c in categories]))


def test_category_accuracy_of_a_known_row() -> None:
    true = np.array([[0, 1, 0, 0.5, 0, 1]] * 3, np.float32)
    predicted = true.copy()
    predicted[:, :3] = [[0.2, 0.3, -5.0], [0.9, 0.8, 0.1], [0.0, 0.1, 0.2]]
    assert row_metrics(predicted, true, CHOICE)["category_accuracy"].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("predicted", "true", "within"),
    [
        (60.0, 60, True),
        (61.0, 60, True),  # The boundary itself counts.
        (59.0, 60, True),
        (62.0, 60, False),
        (58.0, 60, False),
        (61.4, 60, True),  # Rounds to 61.
        (61.6, 60, False),  # Rounds to 62.
        (58.6, 60, True),
        (58.4, 60, False),
        (90.0, 71, True),  # Decoding clips to the highest note.
        (-20.0, 49, True),
        (-20.0, 50, False),
    ],
)
def test_pitch_is_rounded_and_counts_within_a_semitone(predicted: float, true: int, within: bool) -> None:
    rows = np.full((2, 1, PLAIN.width), 0.5)
    rows[0, 0, 2], rows[1, 0, 2] = (predicted - 48) / 24, (true - 48) / 24
    metrics = row_metrics(rows[0].astype(np.float32), rows[1].astype(np.float32), PLAIN)
    assert metrics["pitch_within_semitone"].tolist() == [float(within)]


def test_error_of_each_parameter_is_the_mean_over_its_columns_and_rows() -> None:
    predicted, true = random_rows(CHOICE, 5, seed=1), random_rows(CHOICE, 5, seed=2)
    squares = (np.float64(predicted) - true) ** 2
    errors = per_parameter_mse(predicted, true, CHOICE)
    assert list(errors) == ["wave", "pitch", "note_start_and_end"]
    expected = [squares[:, :3].mean(), squares[:, 3].mean(), squares[:, 4:].mean()]
    np.testing.assert_allclose(list(errors.values()), expected, rtol=1e-6)
    # Weighted by columns they give the error of the rows.
    assert np.dot(expected, [3, 1, 2]) / 6 == pytest.approx(row_metrics(predicted, true, CHOICE)["mse"].mean())


def test_summary_has_the_mean_and_the_interval_of_normal_theory() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2_000)
    mean, low, high, median, count = astuple(summarise(values))
    assert (median, count) == (np.median(values), 2_000)
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(2_000)
    assert mean - low == pytest.approx(half, rel=0.1)
    assert high - mean == pytest.approx(half, rel=0.1)


def test_interval_covers_the_true_mean_in_about_95_of_100_draws() -> None:
    rng = np.random.default_rng(1)
    summaries = [summarise(rng.normal(size=60), resamples=300) for _ in range(200)]
    covered = np.mean([one.low <= 0 <= one.high for one in summaries])
    assert 0.89 <= covered <= 0.985


def test_summary_is_the_same_every_time() -> None:
    values = np.random.default_rng(2).uniform(size=50)
    assert summarise(values) == summarise(values)
    assert summarise(values, seed=1) != summarise(values)


def test_summary_of_equal_values_is_that_value() -> None:
    assert summarise(np.full(7, 0.25)) == Summary(0.25, 0.25, 0.25, 0.25, 7)
