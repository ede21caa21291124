"""The table of metrics: what is printed, written and read again, in the shapes of now and of before."""

from __future__ import annotations

import csv
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest

from synthjax.evaluation.table import (
    NOISE_FLOOR,
    ORACLE,
    PREDICTION,
    RANDOM,
    Table,
    print_table,
    read_table,
    tabulate,
    write_samples,
    write_table,
)
from tests.helpers import REPOSITORY

FIGURES = {
    PREDICTION: {"mss": np.ma.MaskedArray([1.0, 3.0, 0.0], [False, False, True]), "mse": np.array([1.0, 2.0, 6.0])},
    RANDOM: {"mss": np.array([5.0, 7.0, 9.0])},
}
ABOUT = {"checkpoint": 5, "sampling": {"guidance_interval": [0.2, 0.6]}}


@pytest.fixture
def table() -> Table:
    return tabulate(ABOUT, 3, FIGURES, not_rendered=1)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of an archive that was made by the code of 2026-11."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(REPOSITORY / "tests" / "data" / "before.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "runs"


def test_masked_values_do_not_count(table: Table) -> None:
    mss = table.metrics[PREDICTION]["mss"]
    assert (mss.mean, mss.median, mss.count) == (2.0, 2.0, 2)
    assert table.metrics[PREDICTION]["mse"].count == table.count == 3


def test_the_kinds_of_a_metric_are_printed_one_below_the_other(
    table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(table)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.endswith("n = 3")
    assert [line[:36].strip() for line in lines] == ["mss", "mss, random", "mse"]
    assert lines[0].split()[1:] == ["2.00000", "1.00000", "..", "3.00000", "2.00000", "2"]


def test_a_table_is_read_as_it_was_written(table: Table, tmp_path: Path) -> None:
    write_table(tmp_path / "metrics.json", table)
    assert read_table(tmp_path / "metrics.json") == table


def test_figures_that_are_not_measured_again_stay(table: Table, tmp_path: Path) -> None:
    write_table(tmp_path / "metrics.json", table)
    write_table(tmp_path / "metrics.json", tabulate(ABOUT, 3, {PREDICTION: {"mse": np.zeros(3)}}))
    after = read_table(tmp_path / "metrics.json")
    assert after is not None
    assert after.metrics[PREDICTION]["mss"] == table.metrics[PREDICTION]["mss"]
    assert after.metrics[PREDICTION]["mse"].mean == 0.0
    assert after.details == {"not_rendered": 1}


@pytest.mark.parametrize(
    "text",
    [
        '{"checkpoint": 4, "audio": 1}',
        '{"checkpoint": 5, "audio"',
        "[]",
        '{"metrics": 1}',
        json.dumps({"about": {"checkpoint": 4}, "count": 3, "metrics": {RANDOM: {}}, "details": {}}),
    ],
)
def test_figures_of_another_evaluation_do_not_stay(table: Table, tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.json").write_text(text)
    write_table(tmp_path / "metrics.json", table)
    assert read_table(tmp_path / "metrics.json") == table


def test_samples_have_a_line_a_row_and_missing_values_are_empty(tmp_path: Path) -> None:
    write_samples(tmp_path / "per_sample.csv", ["a", "b", "c"], FIGURES)
    with (tmp_path / "per_sample.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[0] == {"index": "0", "name": "a", "mss": "1.0", "mse": "1.0", "mss_random": "5.0"}
    assert lines[2] == {"index": "2", "name": "c", "mss": "", "mse": "6.0", "mss_random": "9.0"}


def test_a_k_osc_table_of_before_opens(before: Path) -> None:
    table = read_table(before / "k_osc" / "evaluation" / "test-2" / "metrics.json")
    assert table is not None
    assert (table.about["checkpoint"], table.about["split"], table.count) == (2, "test", 16)
    assert list(table.metrics) == [PREDICTION, RANDOM]
    lsd = table.metrics[RANDOM]["lsd"]
    assert (lsd.mean, lsd.low, lsd.high) == (16.07513999938965, 13.968394470214843, 18.245138406753536)
    assert math.isnan(lsd.median)
    assert len(table.metrics[PREDICTION]) == 6


def test_a_rendered_table_of_before_opens_and_keeps_its_audio(before: Path, tmp_path: Path) -> None:
    old = before / "flow" / "evaluation" / "test-2" / "metrics.json"
    table = read_table(old)
    assert table is not None
    assert list(table.about) == ["split", "rows", "data", "run", "checkpoint", "weights", "seed", "sampling"]
    assert set(table.metrics) == {PREDICTION, ORACLE, NOISE_FLOOR}
    assert (table.metrics[PREDICTION]["mse"].mean, table.metrics[PREDICTION]["mss"].median) == (
        0.447186581834638,
        7.859010699522822,
    )
    assert set(table.details) == {"per_parameter_mse", "per_parameter_mse_best_swap", "not_rendered"}
    (tmp_path / "metrics.json").write_bytes(old.read_bytes())
    write_table(tmp_path / "metrics.json", tabulate(table.about, 2, {PREDICTION: {"mse": np.zeros(2)}}))
    again = read_table(tmp_path / "metrics.json")
    assert again is not None
    assert again.metrics[ORACLE] == table.metrics[ORACLE]
    assert again.metrics[PREDICTION]["mss"] == table.metrics[PREDICTION]["mss"]
