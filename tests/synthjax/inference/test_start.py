"""A patch to begin with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.mixture import Modules
from data_pipeline.params.spec import load_spec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.synths.choice import panel_of, synth_for
from data_pipeline.synths.dexed.syx import write_banks
from data_pipeline.synths.dexed.voice import INIT_VOICE
from data_pipeline.synths.preset_files import read
from synthjax.inference.predictor import Predictor
from synthjax.inference.start import read_start
from synthjax.retrieval.search import Library
from tests.synthjax.retrieval.test_library import random_index

SPEC = load_spec("dexed")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start") / "bank.syx"
    path.write_bytes(write_banks([INIT_VOICE])[0])
    return path


def test_a_voice_of_a_bank_is_read(bank: Path) -> None:
    start = read_start(f"{bank}:1", SPEC, 0.5)
    values = SPEC.decode(start.row)
    assert {name: values[name] for name in read(bank)[0][0].values} == dict(read(bank)[0][0].values)
    with pytest.raises(UserError, match="has voices 1 to"):
        read_start(f"{bank}:99", SPEC, 0.5)
    with pytest.raises(UserError, match="is a preset of spec dexed"):
        read_start(f"{bank}", load_spec("surge_simple"), 0.5)


def test_modules_are_kept_whole(bank: Path) -> None:
    start, other = read_start(f"{bank}", SPEC, 0.5), SPEC.sample(0, [0], [0])[0]
    modules = Modules.of(SPEC, panel_of(SPEC))
    mixed = start.mixed(other, modules, np.random.default_rng(0))
    for names in panel_of(SPEC).modules(SPEC).values():
        columns = np.concatenate([np.arange(SPEC.slices[name].start, SPEC.slices[name].stop) for name in names])
        assert (mixed[columns] == start.row[columns]).all() or (mixed[columns] == other[columns]).all()
    notes = SPEC.slices["pitch"].start
    np.testing.assert_array_equal(mixed[notes:], other[notes:])


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_a_start_is_an_answer(bank: Path, keep: float) -> None:
    start, library = read_start(f"{bank}", SPEC, keep), Library(random_index(20)[0])
    noise = np.random.default_rng(0).normal(0.0, 0.1, (2, 176400)).astype(np.float32)
    with PatchRenderer(synth_for(SPEC), 1) as renderer:
        [prediction] = Predictor(None, renderer, library, start=start).predict([noise], candidates=100)
    origins = [candidate.origin for candidate in prediction.candidates]
    assert sum(origin.startswith("the start") for origin in origins) == 1
    assert len(origins) == (1 if keep == 1.0 else 21)
    if keep == 1.0:
        values = prediction.values
        assert {name: values[name] for name in start_values(start.row)} == start_values(start.row)


def start_values(row: np.ndarray) -> dict:
    values = SPEC.decode(row)
    return {parameter.name: values[parameter.name] for parameter in SPEC.synth_params}
