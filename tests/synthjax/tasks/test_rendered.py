"""Training data that are rendered as they are needed, with the real Dexed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from absl import flags

from data_pipeline.console.cli import UserError
from data_pipeline.params.counter_rng import VALIDATION_SEED
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.mel_stats import MelStats
from data_pipeline.shards.reader import MEL_SPEC, PARAM_ARRAY, ShardReader
from data_pipeline.synths.dexed.syx import write_banks
from data_pipeline.synths.dexed.voice import INIT_VOICE
from synthjax.cluster import sharding
from synthjax.methods.examples import HostBatch, from_model_scale
from synthjax.runs.check_config import check_config
from synthjax.tasks import rendered
from synthjax.tasks.batches import prefetch
from synthjax.tasks.rendered import REUSE_STEPS, RenderedOrder, RenderedRows, RenderedTrainingData, render_settings
from tests.helpers import run_cli

SPEC = load_spec("dexed")
BATCH = 8


@pytest.fixture
def config(tiny_config: ml_collections.ConfigDict, monkeypatch: pytest.MonkeyPatch) -> ml_collections.ConfigDict:
    monkeypatch.setattr(rendered, "STATISTICS_ROWS", 40)
    tiny_config.data.update({"source": "render", "spec": "dexed", "batch_size": BATCH, "workers": 0})
    tiny_config.validation.update({"rows": 6, "sampled_rows": 4, "probe_sounds": 2})
    tiny_config.train.update({"steps": 6, "eval_every": 3})
    return tiny_config


def read(config: ml_collections.ConfigDict, *, workers: int = 0, start: int = 0, local: range = range(BATCH)) -> list:
    data = RenderedTrainingData(config, None)
    with prefetch(data.batches(local), workers=workers, start=start) as stream:
        return [{name: array.copy() for name, array in batch.items()} for batch in stream]


def assert_same(some: list[HostBatch], others: list[HostBatch]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_rows_are_those_that_shards_would_hold(tmp_path: Path) -> None:
    command = ("data_pipeline.render_shards", "--config=configs/render_dexed.py")
    settings = ("--shards=0", "--samples_per_shard=12", "--seed=7", f"--output={tmp_path}")
    result = run_cli(*command, *settings)
    assert result.returncode == 0, result.stderr
    shard = ShardReader(tmp_path / "shard-0.h5")
    rows = RenderedRows(render_settings(SPEC, 7), RenderedOrder(12, 1))
    numbers = np.array([9, 2, 11])
    for name in (MEL_SPEC, PARAM_ARRAY):
        np.testing.assert_array_equal(rows.read_rows(name, numbers), shard.read_rows(name, numbers))


def test_workers_a_resumed_run_and_parts_of_a_batch_see_the_same_rows(config: ml_collections.ConfigDict) -> None:
    flags.FLAGS.mark_as_parsed()  # As a command would have; grain looks.
    config.data.reuse = 2
    whole = read(config)
    assert_same(read(config, workers=2), whole)
    assert_same(read(config, start=4), whole[4:])
    halves = [read(config, local=range(first, first + BATCH // 2)) for first in (0, BATCH // 2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        for name in batch:
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), batch[name])
    assert whole[0]["mel_spec"].dtype == np.float16
    rows = np.concatenate([batch["x1"] for batch in whole])
    assert len(np.unique(rows, axis=0)) == len(rows) == 6 * BATCH


@pytest.mark.parametrize(("batch_size", "reuse"), [(8, 1), (8, 4), (7, 3)])
def test_rows_are_used_again_at_a_distance(batch_size: int, reuse: int) -> None:
    order, steps = RenderedOrder(batch_size, reuse), (2 * reuse + 1) * REUSE_STEPS
    used: dict[int, list[int]] = {}
    for step in range(steps):
        rows = order[step].tolist()
        assert len(set(rows)) == batch_size
        for row in rows:
            used.setdefault(row, []).append(step)
            assert order.may_be_used(row, max(rows))
    assert all((np.diff(at) == REUSE_STEPS).all() for at in used.values())
    times = {len(at) for at in used.values() if REUSE_STEPS <= at[0] < steps - reuse * REUSE_STEPS}
    assert times == {reuse, batch_size % reuse} - {0}
    fresh = [sum(at[0] == step for at in used.values()) for step in range(steps)]
    assert set(fresh[:REUSE_STEPS]) == {batch_size}
    assert set(fresh[REUSE_STEPS:]) == {-(-batch_size // reuse)}


def test_reused_rows_are_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendered, "REUSE_STEPS", 2)
    order = RenderedOrder(BATCH, 2)
    rows = RenderedRows(render_settings(SPEC, 0), order)
    asked: list[int] = []
    render = rows._renderer

    def noting(indices: list[int]) -> list:
        asked.extend(indices)
        return render(indices)

    rows._renderer = noting  # type: ignore[assignment]
    for step in range(6):
        rows.read_rows(PARAM_ARRAY, order[step])
        rows.read_rows(MEL_SPEC, order[step][:2])
    assert len(asked) == len(set(asked)) == 2 * BATCH + 4 * BATCH // 2
    assert len(rows._memory) <= 3 * BATCH


def test_statistics_validation_rows_and_sounds_of_the_probe(config: ml_collections.ConfigDict) -> None:
    data = RenderedTrainingData(config, None)
    settings = render_settings(SPEC, 0)
    mels = RenderedRows(settings, RenderedOrder(40, 1)).read_rows(MEL_SPEC, np.arange(40))
    assert data.stats is not None
    np.testing.assert_allclose(data.stats.mean, mels.astype(np.float64).mean(axis=0), atol=1e-4)
    held_out = data.held_out(sharding.batch_sharding(sharding.make_mesh(config.mesh)))
    assert held_out is not None
    assert held_out.rows == 6
    validation = RenderedRows(replace(settings, seed=VALIDATION_SEED), RenderedOrder(6, 1))
    true = from_model_scale(np.asarray(held_out.true_rows(6)))
    np.testing.assert_allclose(true, validation.read_rows(PARAM_ARRAY, np.arange(6)), atol=1e-6)
    targets = data.probe_targets()
    assert targets is not None
    assert targets[1].shape == (2, 2, 176400)


def test_only_the_spectrograms_of_training_are_corrupted(config: ml_collections.ConfigDict) -> None:
    clean = RenderedTrainingData(config, None)
    config.data.corruption.noise = 1.0
    noisy = RenderedTrainingData(config, None)
    assert clean.identity != noisy.identity
    (mels, rows), (noisy_mels, noisy_rows) = (
        (batch["mel_spec"], batch["x1"]) for batch in (data.batches(range(BATCH))[0] for data in (clean, noisy))
    )
    np.testing.assert_array_equal(rows, noisy_rows)
    assert (noisy_mels != mels).any(axis=(1, 2, 3)).all()
    assert clean._held_out is not None
    assert noisy._held_out is not None
    np.testing.assert_array_equal(*(data._held_out.read_rows(MEL_SPEC, np.arange(6)) for data in (clean, noisy)))
    assert clean.stats is not None
    assert noisy.stats is not None
    assert noisy.stats.mean.mean() > clean.stats.mean.mean() + 1.0


def test_statistics_of_a_run_that_goes_on_are_its_own(config: ml_collections.ConfigDict) -> None:
    saved = MelStats(*(np.full((2, 128, 401), value, np.float32) for value in (-40, 9)))
    stats = RenderedTrainingData(config, saved).stats
    assert stats is not None
    np.testing.assert_array_equal(jax.device_get(stats.std), saved.std)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", 2, r"data\.seed=2 must not be .* \(1, 2\)"),
        ("corruption", {"noise": 1.5}, r"data\.corruption\.noise=1\.5 must be a probability"),
        ("reuse", 9, r"data\.reuse=9 must be 1 to data\.batch_size"),
        ("cache", "host", r"data\.cache=host keeps rows of shards"),
    ],
)
def test_settings_that_cannot_be(config: ml_collections.ConfigDict, key: str, value: object, words: str) -> None:
    config.data[key] = value
    with pytest.raises(UserError, match=words):
        check_config(config)


def test_rows_of_a_prior_are_mixtures_of_its_patches(config: ml_collections.ConfigDict, tmp_path: Path) -> None:
    (tmp_path / "bank.syx").write_bytes(write_banks([INIT_VOICE])[0])
    config.data.prior = str(tmp_path)
    data = RenderedTrainingData(config, None)
    assert data.identity["prior_hash"]
    [batch, *_] = read(config)
    carrier = SPEC.slices["op_1_output_level"]
    assert (from_model_scale(batch["x1"])[:, carrier] > 0.9).all()  # Of the one patch, or moved by a small step.


def test_workers_that_could_not_keep_their_rows(config: ml_collections.ConfigDict) -> None:
    config.data.update({"reuse": 2, "workers": 5})
    with pytest.raises(UserError, match=r"data\.workers=5 must divide 24"):
        RenderedTrainingData(config, None)


def test_a_spec_without_a_synthesizer(config: ml_collections.ConfigDict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGE_XT_PLUGIN", "/nowhere/surge.vst3")
    config.data.spec = "surge_simple"
    with pytest.raises(UserError, match=r"data\.source=render: there is no plugin at '/nowhere/surge\.vst3'"):
        RenderedTrainingData(config, None)
