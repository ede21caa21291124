"""Data sets of mixtures of known patches, rendered with Dexed: reproducible, labelled, and refused where priors mix."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.params.mixture import Mixture
from data_pipeline.params.spec import load_spec
from data_pipeline.render.config import render_settings
from data_pipeline.render.progress import RenderProgress
from data_pipeline.render.row_renderer import Batch, RenderSettings
from data_pipeline.render.run import Plan, open_shards
from data_pipeline.render.run import render as render_plan
from data_pipeline.render.worker_pool import Loss, Outcome
from data_pipeline.shards.partial_shard import log_path
from data_pipeline.shards.reader import AUDIO, PARAM_ARRAY, ShardReader
from data_pipeline.shards.row_compression import RenderedBatch
from data_pipeline.synths.choice import open_synth
from data_pipeline.synths.dexed.syx import write_banks
from data_pipeline.synths.known_patches import mixture_of_folder
from synthjax.configs import render_dexed
from tests.data_pipeline.synths.test_known_patches import folder_of, voices
from tests.helpers import REPOSITORY, all_rows, run_cli

SPEC = load_spec("dexed")
SEED, ROWS = 7, 6
SETTINGS = render_settings(render_dexed.get_config(), seed=SEED)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a bank of eight voices and the initial voice."""
    return folder_of(tmp_path / "known", {"a.syx": write_banks(voices(8))[0]})


@pytest.fixture
def mixture(folder: Path) -> Mixture:
    return mixture_of_folder(folder, SETTINGS.synth)[0]


def render(prior: Path | None, output: Path, **flags: object) -> subprocess.CompletedProcess:
    values = {"output": output, "shards": 0, "samples_per_shard": ROWS, "seed": SEED, "config.batch_rows": 2, **flags}
    values |= {"prior": prior} if prior else {}
    listed = [f"--{name}={value}" for name, value in values.items()]
    return run_cli("data_pipeline.render_shards", "--config=configs/render_dexed.py", *listed, cwd=REPOSITORY)


class StoppingExecutor:
    """Renders two batches in this process, then it is interrupted."""

    def __init__(self, settings: RenderSettings) -> None:
        self._settings = settings

    def run(self, batches: Iterable[Batch], on_loss: Callable[[Loss], None]) -> Iterator[Outcome[RenderedBatch]]:
        synth = open_synth(self._settings.synth)
        for batch in islice(batches, 2):
            rendered = self._settings.renderer(synth).render(batch, lambda attempt: None)
            yield Outcome(rendered, synth.name, synth.version)
        raise KeyboardInterrupt


def begin(mixture: Mixture, output: Path) -> Path:
    """Begins the shard and returns its log, which has four of six rows."""
    settings = RenderSettings(SETTINGS.synth, SEED, SETTINGS.min_loudness, SETTINGS.max_peak, 200, mixture)
    plan = Plan(settings, output, (0,), ROWS, 2)
    shards = open_shards(plan)
    with pytest.raises(KeyboardInterrupt), RenderProgress(ROWS, 0) as progress:
        render_plan(plan, shards, StoppingExecutor(settings), progress)
    assert len(shards[0].missing) == 2
    shards[0].close()
    return log_path(plan.path(0))


def test_rows_are_the_mixtures_and_each_is_its_own_label(folder: Path, mixture: Mixture, tmp_path: Path) -> None:
    result = render(folder, tmp_path / "out", workers=1)
    assert result.returncode == 0, result.stderr
    assert f"prior {folder}: different patches: 9, in 1 file" in result.stderr
    reader = ShardReader(tmp_path / "out" / "shard-0.h5")
    assert reader.attrs["prior_hash"] == mixture.content_hash
    assert reader.attrs["spec_hash"] == SPEC.content_hash
    synth = open_synth(SETTINGS.synth)
    for index, row in enumerate(all_rows(reader, PARAM_ARRAY)):
        attempts = mixture.sample(SEED, [index] * 20, range(20))
        assert row.tobytes() in {attempt.tobytes() for attempt in attempts}
        audio = synth.render(SPEC.decode(row))
        np.testing.assert_array_equal(reader.read(AUDIO, index), audio.astype(np.float16))


def test_neither_workers_nor_interruption_nor_the_files_change_a_byte(
    folder: Path, mixture: Mixture, tmp_path: Path
) -> None:
    assert render(folder, tmp_path / "whole", workers=1).returncode == 0
    begin(mixture, tmp_path / "begun")
    files = {"sub/y.syx": write_banks(voices(8)[4:])[0], "x.syx": write_banks(voices(8)[:4][::-1])[0]}
    other_files = folder_of(tmp_path / "others", files)
    result = render(other_files, tmp_path / "begun", workers=2)
    assert result.returncode == 0, result.stderr
    whole, begun = ((tmp_path / name / "shard-0.h5").read_bytes() for name in ("whole", "begun"))
    assert begun == whole


def test_another_prior_is_refused(folder: Path, mixture: Mixture, tmp_path: Path) -> None:
    """For a shard under way and for a finished one, as another seed is."""
    log = begin(mixture, tmp_path / "out")
    fewer = folder_of(tmp_path / "fewer", {"a.syx": write_banks(voices(7))[0]})
    for prior in (fewer, None):
        result = render(prior, tmp_path / "out", workers=1)
        assert result.returncode == 2
        assert f"{log} was begun with prior_hash {mixture.content_hash}, not " in result.stderr.splitlines()[-1]
    assert render(folder, tmp_path / "out", workers=1).returncode == 0
    result = render(None, tmp_path / "out", workers=1)
    assert result.returncode == 2
    assert f"with prior_hash {mixture.content_hash} instead of None" in result.stderr


def test_a_shard_of_the_specs_weights_names_no_prior(tmp_path: Path) -> None:
    assert render(None, tmp_path / "out", workers=1, samples_per_shard=1).returncode == 0
    assert "prior_hash" not in ShardReader(tmp_path / "out" / "shard-0.h5").attrs


def test_a_folder_without_patches_is_one_line(tmp_path: Path) -> None:
    result = render(tmp_path, tmp_path / "out")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line == f"error: --prior={tmp_path} has no patch of spec dexed"
    assert not (tmp_path / "out").exists()
