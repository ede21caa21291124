"""Rows against the golden patches, round trips, interchangeable parts, and malformed specs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import MIN_NOTE_SECONDS, Categorical, Continuous, Discrete, NoteDuration, Parameter
from data_pipeline.params.spec import MAX_SPEC_BYTES, MAX_WIDTH, ParamSpec, load_spec

BUNDLED = {"surge_simple": 92, "surge_xt": 300}
REAL = st.floats(-1e300, 1e300) | st.floats(-0.5, 1.5)


def small_spec(**changes: Any) -> dict[str, Any]:
    """A spec of every kind, as JSON data."""
    oscillators: list[dict[str, Any]] = []
    for number in (1, 2):
        shape = {"values": ["sine", "saw"], "raw_values": [0.1 * number, 0.5], "weights": [1.0, 2]}
        oscillators += [
            {"name": f"osc_{number}_level", "width": 1, "kind": "continuous", "min": -2.0, "max": 0.5 * number},
            {"name": f"osc_{number}_shape", "width": 2, "kind": "categorical", "encoding": "onehot", **shape},
        ]
    note = [
        {"name": "pitch", "width": 1, "kind": "discrete", "encoding": "scalar", "min": 48, "max": 72},
        {"name": "note_start_and_end", "width": 2, "kind": "note_duration", "max_seconds": 4.0},
    ]
    spec = {"name": "small", "width": 9, "synth_params": oscillators, "note_params": note}
    return {**spec, "interchangeable": [["osc_1_", "osc_2_"]], **changes}


def write_spec(folder: Path, content: Any) -> str:
    path = folder / "spec.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def legal_values(parameter: Parameter) -> st.SearchStrategy[Any]:
    match parameter:
        case Continuous(_, low, high):
            return st.floats(low, high)
        case Categorical(_, _, raw_values):
            return st.sampled_from(raw_values)
        case Discrete(_, low, high):
            return st.integers(low, high)
        case NoteDuration(_, max_seconds):
            starts = st.floats(0.0, max_seconds - 2 * MIN_NOTE_SECONDS)
            return starts.flatmap(
                lambda start: st.tuples(st.just(start), st.floats(start + MIN_NOTE_SECONDS, max_seconds))
            )


def legal_patches(spec: ParamSpec) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({parameter.name: legal_values(parameter) for parameter in spec.parameters})


def assert_same_patch(spec: ParamSpec, decoded: dict[str, Any], expected: dict[str, Any]) -> None:
    """Categories and pitch exactly, real numbers to the float32 precision of their column."""
    for parameter in spec.parameters:
        got, want = decoded[parameter.name], expected[parameter.name]
        match parameter:
            case Continuous(_, low, high):
                assert got == pytest.approx(want, abs=1e-7 * (high - low)), parameter.name
            case NoteDuration(_, max_seconds):
                assert got == pytest.approx(tuple(want), abs=1e-7 * max_seconds)
            case _:
                assert got == want, parameter.name


@pytest.mark.parametrize("name", BUNDLED)
def test_golden_patches_encode_to_their_rows_and_decode_back(shared_data: Path, name: str) -> None:
    spec = load_spec(name)
    golden = json.loads((shared_data / "golden" / f"{name}.json").read_text())
    for patch in golden["patches"]:
        values = {**patch["synth_params"], **patch["note_params"]}
        row = spec.encode(values)
        assert row.dtype == np.float32
        np.testing.assert_array_equal(row, np.asarray(patch["param_array"], np.float32))
        assert_same_patch(spec, spec.decode(row), values)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_spec_holds_what_the_shared_one_holds(shared_data: Path, name: str) -> None:
    shared = json.loads((shared_data / "specs" / f"{name}.json").read_text())
    spec = load_spec(name)
    entries = shared["synth_params"] + shared["note_params"]
    assert [parameter.name for parameter in spec.parameters] == [entry["name"] for entry in entries]
    assert spec.width == shared["width"] == BUNDLED[name]
    for parameter, entry in zip(spec.parameters, entries, strict=True):
        for key in entry.keys() - {"name", "kind", "encoding"}:
            want = tuple(entry[key]) if isinstance(entry[key], list) else entry[key]
            assert getattr(parameter, key) == want, (parameter.name, key)


@pytest.mark.parametrize("name", BUNDLED)
def test_slices_and_column_names_cover_the_row(name: str) -> None:
    spec = load_spec(name)
    columns = np.concatenate([np.arange(spec.width)[columns] for columns in spec.slices.values()])
    np.testing.assert_array_equal(columns, np.arange(spec.width))
    assert len(set(spec.column_names)) == spec.width
    assert spec.column_names[-3:] == ("pitch", "note_start", "note_end")


def test_one_hot_columns_are_named_by_their_label() -> None:
    spec = load_spec("surge_xt")
    octave = spec.column_names[spec.slices["a_osc_1_octave"]]
    assert octave == tuple(f"a_osc_1_octave={value}" for value in range(-3, 4))
    assert spec.labels(spec.decode(np.zeros(spec.width)))["a_filter_configuration"] == "Serial 1"


@pytest.mark.parametrize("name", BUNDLED)
def test_decode_inverts_encode(name: str) -> None:
    spec = load_spec(name)

    @settings(max_examples=10, deadline=None)
    @given(legal_patches(spec))
    def check(values: dict[str, Any]) -> None:
        row = spec.encode(values)
        assert np.all((row >= 0) & (row <= 1))
        assert_same_patch(spec, spec.decode(row), values)

    check()


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(0, 1))
def test_any_continuous_range_round_trips(low: float, span: float, position: float) -> None:
    parameter = Continuous("gain", low, low + span)
    value = min(low + position * span, parameter.max)
    assert parameter.decode(parameter.encode(value)) == pytest.approx(value, abs=1e-6 * span)
    assert parameter.decode(parameter.encode(parameter.min)) == parameter.min
    assert parameter.decode(parameter.encode(parameter.max)) == parameter.max


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_real_row_decodes_to_a_legal_patch(data: st.DataObject) -> None:
    spec = load_spec("surge_xt")
    kinds = data.draw(st.lists(REAL, min_size=16, max_size=16))
    row = np.resize(np.asarray(kinds), spec.width)
    row[-3:] = data.draw(st.lists(REAL, min_size=3, max_size=3))
    values = spec.decode(row)
    start, end = values["note_start_and_end"]
    assert 0.0 <= start < end <= 4.0
    assert end - start >= MIN_NOTE_SECONDS - 1e-12
    assert isinstance(values["pitch"], int)
    spec.encode(values)  # Refuses whatever is not legal.


@pytest.mark.parametrize(
    ("columns", "seconds"),
    [
        ([0.5, 0.25], (1.0, 2.0)),  # Ordered.
        ([-3.0, 7.0], (0.0, 4.0)),  # Clipped.
        ([0.5, 0.5], (2.0, 2.01)),  # The end moves first.
        ([1.0, 1.0], (3.99, 4.0)),  # Then the start.
        ([0.9990, 0.9995], (3.99, 4.0)),
    ],
)
def test_note_times_are_clipped_ordered_and_kept_apart(columns: list[float], seconds: tuple[float, float]) -> None:
    assert NoteDuration("note", 4.0).decode(columns) == pytest.approx(seconds, abs=1e-9)


def test_pitch_is_rounded_to_the_nearest_note() -> None:
    pitch = Discrete("pitch", 48, 72)
    assert [pitch.decode([(note - 48) / 24]) for note in (48.4, 48.6, 71.6, 99.0)] == [48, 49, 72, 72]


def test_nan_is_refused_by_the_name_of_its_column() -> None:
    spec = load_spec("surge_simple")
    row = np.zeros(spec.width)
    row[-3] = np.nan
    with pytest.raises(ValueError, match="pitch is NaN"):
        spec.decode(row)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"osc_1_level": 0.7}, "osc_1_level"),
        ({"osc_1_level": float("nan")}, "osc_1_level"),
        ({"osc_2_shape": 0.3}, "osc_2_shape"),
        ({"pitch": 60.5}, "pitch"),
        ({"pitch": 73}, "pitch"),
        ({"note_start_and_end": (2.0, 1.0)}, "note_start_and_end"),
        ({"note_start_and_end": (0.0, 4.1)}, "note_start_and_end"),
        ({"osc_3_level": 0.0}, "osc_3_level is not in the spec"),
    ],
)
def test_illegal_values_do_not_encode(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    spec = load_spec(write_spec(tmp_path, small_spec()))
    values = spec.decode(np.zeros(spec.width))
    spec.encode(values)
    with pytest.raises(ValueError, match=fault):
        spec.encode({**values, **change})


def test_a_missing_value_does_not_encode(tmp_path: Path) -> None:
    spec = load_spec(write_spec(tmp_path, small_spec()))
    values = spec.decode(np.zeros(spec.width))
    del values["pitch"]
    with pytest.raises(ValueError, match="pitch lacks a value"):
        spec.encode(values)


@pytest.mark.parametrize("name", BUNDLED)
def test_column_permutations_swap_whole_oscillators(name: str) -> None:
    spec = load_spec(name)
    permutations = spec.column_permutations()
    assert permutations.shape == (6, spec.width)
    np.testing.assert_array_equal(permutations[0], np.arange(spec.width))
    names = np.asarray(spec.column_names)
    seen = set()
    for permutation in permutations:
        np.testing.assert_array_equal(np.sort(permutation), np.arange(spec.width))
        order = [names[permutation][spec.slices[f"a_osc_{i}_sync"]][0][6] for i in (1, 2, 3)]
        seen.add("".join(order))
        for position, source in enumerate(order, start=1):
            moved = names[permutation][np.char.startswith(names, f"a_osc_{position}_")]
            want = names[np.char.startswith(names, f"a_osc_{source}_")]
            np.testing.assert_array_equal(moved, want)
        fixed = ~np.char.startswith(names, ("a_osc_1_")) & ~np.char.startswith(names, "a_osc_2_")
        fixed &= ~np.char.startswith(names, "a_osc_3_")
        np.testing.assert_array_equal(names[permutation][fixed], names[fixed])
    assert seen == {"".join(order) for order in itertools.permutations("123")}


def test_content_hash_follows_content_and_nothing_else(tmp_path: Path) -> None:
    base = load_spec(write_spec(tmp_path, small_spec())).content_hash
    assert load_spec(write_spec(tmp_path, small_spec(name="other", interchangeable=[]))).content_hash == base
    changed = small_spec()
    changed["synth_params"][1]["weights"] = [1.0, 3.0]
    reordered = small_spec()
    reordered["synth_params"].reverse()
    hashes = {load_spec(write_spec(tmp_path, spec)).content_hash for spec in (changed, reordered)}
    assert len(hashes | {base}) == 3
    assert load_spec("surge_xt").content_hash != load_spec("surge_simple").content_hash


def malformed() -> dict[str, Any]:
    """Malformed spec files by what is wrong with them."""
    cases: dict[str, Any] = {
        "not json": "{",
        "not an object": "[1]",
        "not a number": json.dumps(small_spec()).replace("-2.0", "NaN"),
        "infinite": json.dumps(small_spec()).replace("-2.0", "-1e999"),
        "deeply nested": "[" * 100_000 + "]" * 100_000,
        "huge": " " * (MAX_SPEC_BYTES + 1),
        "wrong width": small_spec(width=10),
        "no parameters": small_spec(width=0, synth_params=[], note_params=[], interchangeable=[]),
        "no note list": {key: value for key, value in small_spec().items() if key != "note_params"},
        "too many parameters": small_spec(synth_params=[{}] * (MAX_WIDTH + 1)),
        "uneven parts": small_spec(interchangeable=[["osc_1_", "pitch"]]),
        "overlapping parts": small_spec(interchangeable=[["osc_1_", "osc_2_"], ["osc_1", "osc_2"]]),
        "one part": small_spec(interchangeable=[["osc_1_"]]),
        "unknown prefix": small_spec(interchangeable=[["x", "y"]]),
    }
    wide = [{**small_spec()["synth_params"][0], "name": f"p{i}"} for i in range(MAX_WIDTH)]
    cases["absurd width"] = small_spec(synth_params=wide, width=MAX_WIDTH + 3, interchangeable=[])
    for fault, index, change in [
        ("empty range", 0, {"min": 1.0, "max": 1.0}),
        ("text range", 0, {"min": "0"}),
        ("width of a kind", 0, {"width": 2}),
        ("probability", 0, {"constant_probability": 1.5}),
        ("point mass outside", 0, {"constant_probability": 0.5, "constant_value": 9.0}),
        ("unknown kind", 0, {"kind": "magic"}),
        ("empty name", 0, {"name": ""}),
        ("repeated name", 0, {"name": "osc_2_level"}),
        ("unknown encoding", 1, {"encoding": "scalar"}),
        ("no weights", 1, {"weights": [0, 0]}),
        ("negative weight", 1, {"weights": [1, -1]}),
        ("uneven lists", 1, {"weights": [1]}),
        ("equal raw values", 1, {"raw_values": [0.5, 0.5]}),
        ("equal labels", 1, {"values": ["saw", "saw"]}),
        ("list as label", 1, {"values": [["saw"], "sine"]}),
    ]:
        spec = small_spec()
        spec["synth_params"][index].update(change)
        cases[fault] = spec
    return cases


@pytest.mark.parametrize("fault", malformed())
def test_a_malformed_spec_is_a_user_error(tmp_path: Path, fault: str) -> None:
    with pytest.raises(UserError, match=r"spec .*spec\.json"):
        load_spec(write_spec(tmp_path, malformed()[fault]))


def test_an_unknown_name_lists_the_bundled_specs() -> None:
    with pytest.raises(UserError, match=r"'serum'.*surge_simple.*surge_xt"):
        load_spec("serum")


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_spec(str(tmp_path / "none.json"))


@pytest.mark.parametrize("name", ["osc_1_level", "pitch", "note_start", "note_end", "note_start_and_end"])
def test_two_columns_never_have_the_same_name(tmp_path: Path, name: str) -> None:
    """A plugin's parameter may be called like a column of the note."""
    content = small_spec()
    again = {"name": name, "kind": "continuous", "min": 0.0, "max": 1.0}
    with pytest.raises(UserError, match=rf"{name} occurs more than once"):
        load_spec(write_spec(tmp_path, {**content, "width": 10, "synth_params": [*content["synth_params"], again]}))
    again["name"] = f"{name}_"
    changes = {"width": 10, "synth_params": [*content["synth_params"], again], "interchangeable": []}
    assert load_spec(write_spec(tmp_path, {**content, **changes})).width == 10
