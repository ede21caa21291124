"""Mixtures of known patches: what a row is made of, and what it depends on."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.params import mixture as mixtures
from data_pipeline.params.groups import Panel
from data_pipeline.params.kinds import Categorical, Continuous, Discrete, NoteDuration
from data_pipeline.params.mixture import Mixture, patch_bytes
from data_pipeline.params.spec import ParamSpec, bundled_specs, load_spec
from data_pipeline.synths.choice import instrument_of

# Two oscillators that fit in each other's place, with other ranges, and a filter.
SPEC = ParamSpec(
    "small",
    (
        Discrete("osc_1_octave", 0, 8),
        Categorical("osc_1_wave", ("sine", "saw", "never"), (0.0, 0.5, 1.0), (1.0, 1.0, 0.0)),
        Discrete("osc_2_octave", -2, 3),
        Categorical("osc_2_wave", ("sine", "saw", "never"), (0.0, 0.5, 1.0), (1.0, 1.0, 0.0)),
        Continuous("filter_cutoff", 0.0, 2.0),
        Discrete("filter_slope", 0, 99),
    ),
    (Discrete("pitch", 48, 72), NoteDuration("note_start_and_end", 4.0)),
)
PANEL = Panel(groups=((r"osc_(\d)_", "Oscillator {}"), (r"filter_", "Filter")), exchangeable=("Oscillator {}",))
ROWS = 4000


def known(spec: ParamSpec, count: int, seed: int = 1) -> list[bytes]:
    """Patches drawn by the spec's weights."""
    return [patch_bytes(spec, spec.decode(row)) for row in spec.sample(seed, range(count), [0] * count)]


def drawn(mixture: Mixture, count: int = ROWS, seed: int = 5) -> NDArray[np.float32]:
    return mixture.sample(seed, range(count), [0] * count)


@pytest.fixture
def mixture() -> Mixture:
    return Mixture.of(SPEC, PANEL, known(SPEC, 20))


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is moved."""
    monkeypatch.setattr(mixtures, "MOVE", 0.0)


@pytest.mark.parametrize("name", bundled_specs())
def test_rows_are_their_own_labels_and_move_little(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with many exchanges and moves, and where modules of unlike places are exchanged."""
    for constant in ("EXCHANGE", "OTHER_PLACE", "MOVE"):
        monkeypatch.setattr(mixtures, constant, 0.5)
    spec = load_spec(name)
    own = instrument_of(spec)
    assert own
    rows = drawn(Mixture.of(spec, own.panel, known(spec, 8)), 60)
    assert rows.dtype == np.float32
    assert rows.shape == (60, spec.width)
    for row in rows:
        np.testing.assert_allclose(spec.encode(spec.decode(row)), row, rtol=0, atol=2.0**-23)


def test_a_module_from_a_place_of_another_range_becomes_an_integer_of_its_new_place(
    monkeypatch: pytest.MonkeyPatch, still: None
) -> None:
    for constant in ("EXCHANGE", "OTHER_PLACE"):
        monkeypatch.setattr(mixtures, constant, 1.0)
    values = {"osc_1_octave": 3, "osc_1_wave": 0.0, "osc_2_octave": 3, "osc_2_wave": 0.5}
    patch = patch_bytes(SPEC, {**values, "filter_cutoff": 1.0, "filter_slope": 7})
    (row,) = drawn(Mixture.of(SPEC, PANEL, [patch]), 1)
    exchanged = {"osc_1_octave": 8, "osc_1_wave": 0.5, "osc_2_octave": 0, "osc_2_wave": 0.0}
    assert {name: SPEC.decode(row)[name] for name in exchanged} == exchanged


@pytest.mark.parametrize("edge", [0.0, 1.0 - 2.0**-53])
def test_edges_of_the_uniform_numbers(edge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is rounded out of its range."""
    monkeypatch.setattr(mixtures, "uniforms", lambda seed, indices, attempts, count: np.full((1, count), edge))
    for constant in ("EXCHANGE", "OTHER_PLACE", "MOVE"):
        monkeypatch.setattr(mixtures, constant, 1.0)
    for count in range(1, 40):
        (row,) = Mixture.of(SPEC, PANEL, known(SPEC, count)).sample(0, [0], [0])
        np.testing.assert_allclose(SPEC.encode(SPEC.decode(row)), row, rtol=0, atol=2.0**-23)


def test_rows_depend_on_seed_index_and_attempt_alone(mixture: Mixture) -> None:
    rows = mixture.sample(5, [3, 9, 9], [0, 1, 2])
    np.testing.assert_array_equal(mixture.sample(5, [9], [1])[0], rows[1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mixture)).sample(5, [3], [0])[0], rows[0])
    assert len({row.tobytes() for row in [*rows, mixture.sample(6, [3], [0])[0]]}) == 4


def test_order_and_repetition_of_the_patches_do_not_count(mixture: Mixture) -> None:
    patches = known(SPEC, 20)
    same = Mixture.of(SPEC, PANEL, [*reversed(patches), *patches])
    assert same == mixture
    assert hash(same) == hash(mixture)  # Ray's workers keep a pool for equal settings.
    assert same.content_hash == mixture.content_hash
    assert Mixture.of(SPEC, PANEL, patches[1:]).content_hash != mixture.content_hash


def test_unmoved_modules_are_known_ones_and_some_are_anothers(mixture: Mixture, still: None) -> None:
    patches = np.stack([np.frombuffer(patch, "<f4") for patch in known(SPEC, 20)])
    oscillators, filters = np.s_[:4], np.s_[8:10]
    rows = drawn(mixture)
    first = {patch[oscillators].tobytes() for patch in patches}
    assert {row[filters].tobytes() for row in rows} == {patch[filters].tobytes() for patch in patches}
    own = np.array([row[oscillators].tobytes() in first for row in rows])
    # A second oscillator in the first place has its range rounded, so most are in no patch's first place.
    assert 0 < np.mean(~own) < mixtures.EXCHANGE * mixtures.OTHER_PLACE
    whole = {patch.tobytes() for patch in patches}
    alone = np.mean([row[:10].tobytes() in whole for row in rows])
    # All three modules stay, or another patch of the 20 happens to be the same one.
    assert alone == pytest.approx((1 - mixtures.EXCHANGE) ** 3, abs=0.05)


def test_moved_values_are_near_and_within_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixtures, "EXCHANGE", 0.0)
    monkeypatch.setattr(mixtures, "MOVE", 1.0)
    values = {"osc_1_octave": 8, "osc_1_wave": 1.0, "osc_2_octave": 0, "osc_2_wave": 1.0}
    mixture = Mixture.of(SPEC, PANEL, [patch_bytes(SPEC, {**values, "filter_cutoff": 1.0, "filter_slope": 50})])
    decoded = [SPEC.decode(row) for row in drawn(mixture, 1000)]
    assert {values["osc_1_octave"] for values in decoded} == {7}  # The step beyond the end is reflected.
    assert {values["osc_2_octave"] for values in decoded} == {-1, 1}
    assert {values["osc_1_wave"] for values in decoded} == {0.0, 0.5}  # By the spec's weights.
    largest = round(mixtures.STEP * 99)
    assert {values["filter_slope"] for values in decoded} == {50 + step for step in range(-largest, largest + 1)} - {50}
    cutoffs = [values["filter_cutoff"] for values in decoded]
    assert 0 < np.ptp(cutoffs) <= 4 * mixtures.STEP
    assert max(np.abs(np.array(cutoffs) - 1.0)) <= 2 * mixtures.STEP


def test_the_note_is_the_specs(mixture: Mixture) -> None:
    """Pitch over its whole range, times in order."""
    rows = drawn(mixture)
    pitch, start, end = rows[:, -3:].T
    assert np.ptp(pitch) == 1.0
    assert np.all(start < end)
    assert np.mean(end) == pytest.approx(2 / 3, abs=0.02)


def test_what_is_no_patch_of_the_spec_is_refused() -> None:
    with pytest.raises(ValueError, match="osc_1_octave lacks a value"):
        patch_bytes(SPEC, {})
    with pytest.raises(ValueError, match="needs a patch"):
        Mixture.of(SPEC, PANEL, [])
