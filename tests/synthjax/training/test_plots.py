"""The contents of pictures."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.params.spec import load_spec
from synthjax.training.plots import assignment_matrix, cosine_similarity, loss_by_time, parameter_bars, token_similarity


def assert_picture(pixels: np.ndarray) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize("name", ["surge_simple", "surge_xt"])
def test_assignment_of_every_bundled_spec_is_drawn(name: str) -> None:
    names = load_spec(name).column_names
    assignment = np.random.default_rng(0).normal(size=(16, len(names)))
    assert_picture(assignment_matrix(assignment, names))


def test_tokens_are_drawn_in_the_order_of_their_strongest_parameter() -> None:
    diagonal = np.diag([1.0, 2.0, 3.0, 4.0]) + 0.01
    names = ["a", "b", "c", "d"]
    expected = assignment_matrix(diagonal, names)
    np.testing.assert_array_equal(assignment_matrix(diagonal[[2, 0, 3, 1]], names), expected)


def test_parameters_are_drawn_in_row_order() -> None:
    def brightest_column(assignment: list[float]) -> float:
        pixels = assignment_matrix(np.array([assignment]), ["a", "b", "c", "d"])
        pale_yellow = (pixels[..., 0] > 240) & (pixels[..., 2] > 150) & (pixels[..., 2] < 210)
        return float(np.nonzero(pale_yellow)[1].mean())

    left, right = brightest_column([3.0, 1.0, 1.0, 0.0]), brightest_column([0.0, 1.0, 1.0, 3.0])
    assert right - left > 300


def test_tokens_of_one_parameter_are_drawn_strongest_first() -> None:
    shared = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
    ordered = assignment_matrix(shared[[1, 2, 0]], ["a", "b"])
    np.testing.assert_array_equal(assignment_matrix(shared, ["a", "b"]), ordered)


def test_assignment_is_drawn_by_magnitude() -> None:
    signed = np.array([[1.0, -3.0], [-2.0, 0.5]])
    np.testing.assert_array_equal(assignment_matrix(signed, ["a", "b"]), assignment_matrix(np.abs(signed), ["a", "b"]))


def bar_lengths(pixels: np.ndarray) -> np.ndarray:
    """Pixels of bar colour in every row of the picture that has any."""
    blue = (pixels[..., 2].astype(int) - pixels[..., 0] > 100).sum(axis=1)
    return blue[blue > 0]


def test_parameters_are_drawn_largest_error_first() -> None:
    errors = {"middle": 0.5, "worst": 1.0, "best": 0.25}
    pixels = parameter_bars(errors)
    assert_picture(pixels)
    lengths = bar_lengths(pixels)
    assert (np.diff(lengths) <= 0).all()
    assert lengths[0] == pytest.approx(2 * lengths[len(lengths) // 2], rel=0.05)
    assert lengths[0] == pytest.approx(4 * lengths[-1], rel=0.05)


def test_every_parameter_of_the_largest_spec_has_a_bar() -> None:
    names = list(load_spec("surge_xt").slices)
    few, many = parameter_bars(dict.fromkeys(names[:10], 0.5)), parameter_bars(dict.fromkeys(names, 0.5))
    assert many.shape[0] > few.shape[0] + 10 * (len(names) - 10)
    assert many.shape[1] == few.shape[1]


@pytest.mark.parametrize("name", ["$\\bad$", "under_score^hat"])
def test_names_are_drawn_as_they_are(name: str) -> None:
    assert_picture(parameter_bars({name: 0.5, "other": 0.25}))
    assert_picture(assignment_matrix(np.eye(2), [name, "other"]))


def test_parameters_of_a_token_and_of_a_role_differ() -> None:
    """Two oscillators of two parameters each: blocks of shared tokens, stripes of the same part."""
    assignment = np.array([[2.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 3.0]])
    embeddings = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    blocks = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    stripes = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]])
    np.testing.assert_allclose(cosine_similarity(np.abs(assignment).T), blocks, atol=1e-12)
    np.testing.assert_allclose(cosine_similarity(embeddings), stripes, atol=1e-12)
    pixels = token_similarity(assignment, embeddings, ["pitch 1", "level 1", "pitch 2", "level 2"])
    left, right = (matrix_colours(half) for half in np.array_split(pixels[:, :1600], 2, axis=1))
    np.testing.assert_array_equal(left, blocks.astype(bool))
    np.testing.assert_array_equal(right, stripes.astype(bool))


def matrix_colours(pixels: np.ndarray) -> np.ndarray:
    """Which of the 4 x 4 cells of a drawn matrix are dark red: cosine 1."""
    dark_red = (pixels[..., 0] > 90) & (pixels[..., 0] < 115) & (pixels[..., 1] < 10) & (pixels[..., 2] < 40)
    rows, columns = np.nonzero(dark_red)  # The corners of every matrix drawn here are dark red.
    centres = [np.linspace(axis.min(), axis.max(), 9)[1::2].astype(int) for axis in (rows, columns)]
    return dark_red[np.ix_(*centres)]


def test_similarity_is_of_directions_and_has_signs() -> None:
    vectors = np.array([[1.0, 1.0], [-2.0, -2.0], [0.0, 5.0], [0.0, 0.0]])
    half = np.sqrt(0.5)
    expected = [[1, -1, half, 0], [-1, 1, -half, 0], [half, -half, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(cosine_similarity(vectors), expected, atol=1e-12)


def test_similarity_of_the_widest_bundled_spec_is_drawn() -> None:
    names = load_spec("surge_xt").column_names
    generator = np.random.default_rng(0)
    assignment, embeddings = generator.normal(size=(16, len(names))), generator.normal(size=(len(names), 8))
    assert_picture(token_similarity(assignment, embeddings, names))


def test_loss_is_drawn_against_time_in_order_of_time() -> None:
    falling = loss_by_time({0.9: 0.25, 0.1: 1.0, 0.5: 0.5})
    assert_picture(falling)
    np.testing.assert_array_equal(falling, loss_by_time({0.1: 1.0, 0.5: 0.5, 0.9: 0.25}))
    blue = falling[..., 2].astype(int) - falling[..., 0] > 100
    rows, columns = np.nonzero(blue)
    assert rows[columns.argmin()] < rows[columns.argmax()]  # Pixels count from above: the loss falls with time.
