"""Patches that sound before their note: rendered again in a fresh instance, then refused, counted and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.render import row_renderer, worker
from data_pipeline.render.patch_renderer import PatchBatch, PatchBatchRenderer
from data_pipeline.render.row_renderer import SOUNDING, Attempt, Batch, NothingAcceptedError, RenderSettings
from data_pipeline.render.worker import ReopenedSynth
from data_pipeline.shards.reader import PARAM_ARRAY, ShardReader
from data_pipeline.shards.row_compression import RenderedBatch
from data_pipeline.synths.protocol import SynthSettings
from tests.data_pipeline.scripted_synth import SPEC, ScriptedSynth, sine
from tests.helpers import RENDER_SUBTRACTIVE, REPOSITORY, all_rows, run_cli

SEED = 9
# About every third patch.
THIRD = 0.35


@pytest.fixture
def spec(tmp_path: Path) -> ParamSpec:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    return load_spec(str(tmp_path / "spec.json"))


@pytest.fixture
def opened(tmp_path: Path, spec: ParamSpec, monkeypatch: pytest.MonkeyPatch) -> list[ScriptedSynth]:
    """Every instance that a test opens."""
    instances: list[ScriptedSynth] = []
    open_synth = worker.open_synth

    def noting(settings: SynthSettings) -> Any:
        instances.append(open_synth(settings))  # type: ignore[arg-type]
        return instances[-1]

    monkeypatch.setattr(worker, "open_synth", noting)
    return instances


def synth_settings(folder: Path, spec: ParamSpec, **script: Any) -> SynthSettings:
    (folder / "script.json").write_text(json.dumps(script))
    return SynthSettings("tests.data_pipeline.scripted_synth", spec, preset=str(folder / "script.json"))


def render(settings: SynthSettings, *indices: int, announced: list[Attempt] | None = None) -> RenderedBatch:
    """Renders rows as a worker does."""
    rules = RenderSettings(settings, SEED, min_loudness=-np.inf, max_peak=1.0, verify_every=100)
    note = announced.append if announced is not None else lambda attempt: None
    return rules.renderer(ReopenedSynth(settings)).render(Batch(indices), note)


def levels(spec: ParamSpec, index: int, attempts: int = 20) -> np.ndarray:
    return spec.sample(SEED, [index] * attempts, range(attempts))[:, 0]


def test_a_row_never_depends_on_the_rows_before_it(
    tmp_path: Path, spec: ParamSpec, opened: list[ScriptedSynth]
) -> None:
    clean = [render(synth_settings(tmp_path, spec), index).rows[0] for index in range(8)]
    ringing = synth_settings(tmp_path, spec, rings=THIRD)
    opened.clear()
    forwards, backwards = render(ringing, *range(8)), render(ringing, *reversed(range(8)))
    assert list(forwards.rows) == clean
    assert list(backwards.rows) == clean[::-1]
    assert (forwards.refused, forwards.sounding) == ({}, ())
    rang = sum(levels(spec, index)[0] <= THIRD for index in range(7))
    assert rang > 1
    assert len(opened) == 2 + rang + sum(levels(spec, index)[0] <= THIRD for index in range(1, 8))


@pytest.mark.slow
def test_a_patch_that_sounds_in_a_fresh_instance_is_refused_and_the_next_one_drawn(
    tmp_path: Path, spec: ParamSpec, opened: list[ScriptedSynth]
) -> None:
    announced: list[Attempt] = []
    rendered = render(synth_settings(tmp_path, spec, drones=THIRD), *range(8), announced=announced)
    accepted = [int(np.argmax(levels(spec, index) > THIRD)) for index in range(8)]
    assert [row.attempt for row in rendered.rows] == accepted
    assert announced == [(index, attempt) for index in range(8) for attempt in range(accepted[index] + 1)]
    refused = [(index, attempt) for index in range(8) for attempt in range(accepted[index])]
    assert len(refused) > 1
    assert rendered.sounding == tuple(refused)
    assert rendered.refused == {SOUNDING: len(refused)}
    assert len(opened) == 1 + len(refused)  # Each was tried once in a fresh instance.


@pytest.mark.slow
def test_redraws_are_bounded(tmp_path: Path, spec: ParamSpec, opened: list[ScriptedSynth]) -> None:
    announced: list[Attempt] = []
    with pytest.raises(NothingAcceptedError, match=r"sample 4 \(refused in its batch: 10 sounding before the note\)"):
        render(synth_settings(tmp_path, spec, drones=1.0), 4, 5, announced=announced)
    assert announced == [(4, attempt) for attempt in range(row_renderer.MAX_SOUNDING)]
    assert len(opened) == 1 + row_renderer.MAX_SOUNDING


def test_a_given_patch_is_returned_as_it_sounds(tmp_path: Path, spec: ParamSpec, opened: list[ScriptedSynth]) -> None:
    """A given patch is a result: its own drone belongs to it, but nothing of the patch before does."""
    settings = synth_settings(tmp_path, spec, rings=0.3, drones=0.1)
    rows = [np.array([level, 0.3, 0.5, 0.1, 0.9]) for level in (0.2, 0.5, 0.05, 0.6)]
    batch = PatchBatch(tuple(range(4)), rows=tuple(rows))
    found = PatchBatchRenderer(spec, ReopenedSynth(settings)).render(batch, lambda attempt: None)
    for patch, row, loudness in zip(found, rows, (1.0, 1.0, 0.5, 1.0), strict=True):
        np.testing.assert_array_equal(patch.audio, loudness * sine(spec.decode(row)))


def test_a_data_set_names_what_it_refused(tmp_path: Path, spec: ParamSpec) -> None:
    (tmp_path / "script.json").write_text(json.dumps({"drones": THIRD, "rings": 0.6}))
    flags = {
        "config": RENDER_SUBTRACTIVE,
        "output": tmp_path / "out",
        "shards": "0",
        "samples_per_shard": 8,
        "workers": 2,
        "seed": SEED,
        "preset": tmp_path / "script.json",
        "config.synth": "tests.data_pipeline.scripted_synth",
        "config.spec": tmp_path / "spec.json",
        "config.batch_rows": 4,
    }
    result = run_cli(
        "data_pipeline.render_shards", *(f"--{name}={value}" for name, value in flags.items()), cwd=REPOSITORY
    )
    assert result.returncode == 0, result.stderr
    accepted = [int(np.argmax(levels(spec, index) > THIRD)) for index in range(8)]
    expected = np.stack([spec.sample(SEED, [index], [attempt])[0] for index, attempt in enumerate(accepted)])
    np.testing.assert_array_equal(all_rows(ShardReader(tmp_path / "out" / "shard-0.h5"), PARAM_ARRAY), expected)
    named = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    refused = {(index, attempt) for index in range(8) for attempt in range(accepted[index])}
    assert {(entry["index"], entry["attempt"]) for entry in named} == refused
    assert {entry["reason"] for entry in named} == {SOUNDING}
    assert f"refused: {len(refused)} sounding before the note" in result.stderr
    for index, attempt in refused:
        assert f"sample {index}: patch {attempt} is refused, it sounds before its note" in result.stderr
