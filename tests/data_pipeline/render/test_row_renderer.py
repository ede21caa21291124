"""Drawing, rendering, accepting and redrawing, with a synthesizer that records its calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.audio.contract import SAMPLES
from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.render import row_renderer
from data_pipeline.render.row_renderer import Attempt, Batch, NothingAcceptedError, RenderSettings, RowRenderer
from data_pipeline.shards.reader import AUDIO, MEL_SPEC
from data_pipeline.shards.row_compression import RenderedBatch
from data_pipeline.synths.protocol import Audio, DriftError, SynthSettings
from tests.data_pipeline.scripted_synth import SPEC, sine
from tests.data_pipeline.shards.test_row_compression import decoded

SEED = 9
Events = list[tuple[str, Any]]


class NotingSynth:
    """Renders sines, silence for patches at or under ``silent_level``; ``events`` has all calls in order."""

    name, version = "noting", "1"

    def __init__(self, silent_level: float = -1.0) -> None:
        self.silent_level = silent_level
        self.events: Events = []
        self.drifts = False

    def render(self, values: Mapping[str, Any]) -> Audio:
        self.events.append(("render", values))
        return np.zeros((2, SAMPLES), np.float32) if values["level"] <= self.silent_level else sine(values)

    def preset(self) -> None:
        """No test asks for a preset."""

    def verify(self) -> None:
        self.events.append(("verify", None))
        if self.drifts:
            raise DriftError("level is 0.1, not 0.2")

    def calls(self, *kinds: str) -> list[str]:
        return [kind for kind, _ in self.events if kind in kinds]


@pytest.fixture
def spec_path(tmp_path: Path) -> str:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC))
    return str(path)


@pytest.fixture
def spec(spec_path: str) -> ParamSpec:
    return load_spec(spec_path)


@pytest.fixture
def render(spec_path: str) -> Callable[..., RenderedBatch]:
    """Renders a batch with a NotingSynth, which also records the announcements."""

    def run(synth: NotingSynth, batch: Batch, verify_every: int = 100, **rules: float) -> RenderedBatch:
        limits = {"min_loudness": -55.0, "max_peak": 1.0, **rules}
        settings = RenderSettings(
            SynthSettings("noting", load_spec(spec_path)), SEED, verify_every=verify_every, **limits
        )
        return RowRenderer(settings, synth).render(batch, lambda attempt: synth.events.append(("announce", attempt)))

    return run


def attempts(spec: ParamSpec, index: int, silent_level: float) -> list[Attempt]:
    """The attempts of a sample; the last one is accepted."""
    levels = spec.sample(SEED, [index] * 300, range(300))[:, 0]
    return [(index, attempt) for attempt in range(int(np.argmax(levels > silent_level)) + 1)]


def params(rendered: RenderedBatch) -> np.ndarray:
    return np.stack([np.frombuffer(row.params, "<f4") for row in rendered.rows])


def announced(synth: NotingSynth) -> list[Attempt]:
    return [attempt for kind, attempt in synth.events if kind == "announce"]


def test_first_attempts_are_taken_where_nothing_is_refused(
    render: Callable[..., RenderedBatch], spec: ParamSpec
) -> None:
    rendered = render(NotingSynth(), Batch((5, 3, 8)), min_loudness=-np.inf)
    np.testing.assert_array_equal(params(rendered), spec.sample(SEED, [5, 3, 8], [0, 0, 0]))
    assert [(row.index, row.attempt) for row in rendered.rows] == [(5, 0), (3, 0), (8, 0)]
    assert not rendered.refused


def test_row_holds_its_sound_and_the_spectrogram_of_the_sound_as_rendered(
    render: Callable[..., RenderedBatch], spec: ParamSpec
) -> None:
    (row,) = render(NotingSynth(), Batch((5,))).rows
    audio = sine(spec.decode(np.frombuffer(row.params, "<f4")))
    arrays = decoded(row)
    np.testing.assert_array_equal(arrays[AUDIO], audio.astype(np.float16))
    np.testing.assert_array_equal(arrays[MEL_SPEC], mel_spectrogram(audio).astype(np.float16))
    rounded = mel_spectrogram(audio.astype(np.float16).astype(np.float32))
    assert np.any(arrays[MEL_SPEC] != rounded.astype(np.float16))


def test_every_attempt_is_announced_before_it_is_rendered(
    render: Callable[..., RenderedBatch], spec: ParamSpec
) -> None:
    synth = NotingSynth(silent_level=0.8)
    rendered = render(synth, Batch((0, 1, 2, 3)))
    expected = [attempt for index in range(4) for attempt in attempts(spec, index, 0.8)]
    assert len(expected) > 8
    assert announced(synth) == expected
    assert synth.calls("announce", "render") == ["announce", "render"] * len(expected)
    patches = [values for kind, values in synth.events if kind == "render"]
    indices, numbers = zip(*expected, strict=True)
    assert patches == [spec.decode(row) for row in spec.sample(SEED, indices, numbers)]
    assert rendered.refused == {"quiet": len(expected) - 4}
    accepted = [attempts(spec, index, 0.8)[-1] for index in range(4)]
    assert [(row.index, row.attempt) for row in rendered.rows] == accepted
    np.testing.assert_array_equal(params(rendered), spec.sample(SEED, *zip(*accepted, strict=True)))


def test_more_attempts_than_are_drawn_at_once(render: Callable[..., RenderedBatch], spec: ParamSpec) -> None:
    synth = NotingSynth(silent_level=0.97)
    render(synth, Batch((0, 1)))
    expected = attempts(spec, 0, 0.97) + attempts(spec, 1, 0.97)
    assert max(attempt for _, attempt in expected) > 2 * row_renderer.ATTEMPTS_AT_ONCE
    assert announced(synth) == expected


def test_row_does_not_depend_on_its_batch(render: Callable[..., RenderedBatch]) -> None:
    alone = [render(NotingSynth(0.5), Batch((index,))).rows[0] for index in (4, 2, 7)]
    assert list(render(NotingSynth(0.5), Batch((4, 2, 7))).rows) == alone
    assert list(render(NotingSynth(0.5), Batch((7, 4))).rows) == [alone[2], alone[0]]


def test_forbidden_attempts_are_not_made(render: Callable[..., RenderedBatch], spec: ParamSpec) -> None:
    synth = NotingSynth()
    forbidden = frozenset({(0, 0), (0, 1), (1, 1), (2, 0)})  # (1, 1) would not be made anyway.
    rendered = render(synth, Batch((0, 1), forbidden), min_loudness=-np.inf)
    assert announced(synth) == [(0, 2), (1, 0)]
    assert rendered.refused == {"killed": 2}
    np.testing.assert_array_equal(params(rendered), spec.sample(SEED, [0, 1], [2, 0]))


@pytest.mark.parametrize(
    ("rules", "reason"), [({"min_loudness": -14.0}, "quiet"), ({"max_peak": 0.1}, "clipped"), ({}, None)]
)
def test_rules_are_those_of_the_settings(
    render: Callable[..., RenderedBatch], rules: dict[str, float], reason: str | None
) -> None:
    assert set(render(NotingSynth(), Batch((0, 1, 2)), **rules).refused) == ({reason} if reason else set())


@pytest.mark.parametrize(
    ("every", "verify_each", "expected"),
    [
        (3, False, "rrrvrrrvrv"),
        (7, False, "rrrrrrrvv"),
        (100, False, "rrrrrrrv"),
        (1, False, "rvrvrvrvrvrvrvv"),
        (100, True, "rvrvrvrvrvrvrvv"),
    ],
)
def test_patches_are_verified_every_few_renders_and_at_the_end(
    render: Callable[..., RenderedBatch], every: int, verify_each: bool, expected: str
) -> None:
    synth = NotingSynth()
    batch = Batch(tuple(range(7)), verify_each=verify_each)
    render(synth, batch, verify_every=every, min_loudness=-np.inf)
    assert "".join(call[0] for call in synth.calls("render", "verify")) == expected


def test_refused_renders_count_as_renders_between_verifications(
    render: Callable[..., RenderedBatch], spec: ParamSpec
) -> None:
    synth = NotingSynth(silent_level=0.8)
    render(synth, Batch((0, 1)), verify_every=2)
    renders = len(attempts(spec, 0, 0.8)) + len(attempts(spec, 1, 0.8))
    assert len(synth.calls("verify")) == renders // 2 + 1


def test_drift_leaves_no_batch(render: Callable[..., RenderedBatch]) -> None:
    synth = NotingSynth()
    synth.drifts = True
    with pytest.raises(DriftError, match=r"not 0\.2"):
        render(synth, Batch((0, 1)))
    assert synth.calls("render", "verify") == ["render", "render", "verify"]


def test_sample_that_is_never_accepted(render: Callable[..., RenderedBatch]) -> None:
    synth = NotingSynth(silent_level=2.0)
    with pytest.raises(NothingAcceptedError, match=r"sample 6 \(refused in its batch: 299 quiet, 1 killed\)"):
        render(synth, Batch((6, 7), frozenset({(6, 5)})))
    limit = row_renderer.MAX_REFUSED_IN_A_ROW
    assert announced(synth) == [(6, attempt) for attempt in range(limit) if attempt != 5]


def test_patches_are_drawn_for_the_whole_batch_at_once(
    render: Callable[..., RenderedBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    sample = ParamSpec.sample

    def counting(spec: ParamSpec, seed: int, indices: Sequence[int], numbers: Sequence[int]) -> Any:
        calls.append(len(indices))
        return sample(spec, seed, indices, numbers)

    monkeypatch.setattr(ParamSpec, "sample", counting)
    render(NotingSynth(), Batch(tuple(range(6))), min_loudness=-np.inf)
    assert calls == [6 * row_renderer.ATTEMPTS_AT_ONCE]
