"""Given patches in real worker processes: each is returned once, with its sound or its fault."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLES
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.render.patch_renderer import MAX_BATCH, PatchBatch, PatchBatchRenderer, PatchRenderer, RenderedPatch
from data_pipeline.render.worker_messages import Attempt
from data_pipeline.render.worker_pool import Supervision
from data_pipeline.render.worker_process import WorkerProcess
from data_pipeline.synths.choice import open_synth
from data_pipeline.synths.protocol import Audio, SynthSettings
from tests.data_pipeline.scripted_synth import SPEC, sine
from tests.helpers import REPOSITORY

Start = Callable[..., PatchRenderer]
GOOD, BAD = 0.5, 0.05  # Levels: faults of scripts happen at levels of at most 0.1.


@pytest.fixture
def spec(tmp_path: Path) -> ParamSpec:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC))
    return load_spec(str(path))


@pytest.fixture
def start(tmp_path: Path, spec: ParamSpec) -> Start:
    """Starts a renderer of the scripted synthesizer; keywords are its script."""

    def start(workers: int = 1, render_seconds: float = 60.0, **script: Any) -> PatchRenderer:
        path = tmp_path / "script.json"
        path.write_text(json.dumps(script))
        settings = SynthSettings("tests.data_pipeline.scripted_synth", spec, preset=str(path))
        return PatchRenderer(settings, workers, Supervision(render_seconds))

    return start


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def children() -> set[psutil.Process]:
    """The workers of this process, which may have other children that end by themselves."""
    return set(psutil.Process().children())


def row(level: float = GOOD, tone: float = 0.3, pitch: float = 0.5) -> NDArray[np.float64]:
    return np.array([level, tone, pitch, 0.1, 0.9])


def rows(count: int) -> list[NDArray[np.float64]]:
    """Rows that sound different, with columns beyond [0, 1] as models predict them."""
    return [row(GOOD + 0.01 * number, tone=-0.1 + 0.1 * number) for number in range(count)]


def by_key(patches: Iterator[RenderedPatch[Any]]) -> dict[Any, RenderedPatch[Any]]:
    """Every patch is returned once, with either a sound or a fault."""
    found: dict[Any, RenderedPatch[Any]] = {}
    for patch in patches:
        assert patch.key not in found
        assert (patch.audio is None) == bool(patch.fault)
        found[patch.key] = patch
    return found


def assert_sounds_as(patch: RenderedPatch[Any], row: NDArray[np.float64], spec: ParamSpec) -> None:
    assert patch.audio is not None, patch.fault
    assert patch.audio.dtype == np.float32
    np.testing.assert_array_equal(patch.audio, sine(spec.decode(row)))


@pytest.mark.parametrize("workers", [1, 3])
def test_every_row_comes_back_with_its_key(start: Start, spec: ParamSpec, workers: int) -> None:
    given = dict(zip([None, "a", (1, 2), *range(8)], rows(11), strict=True))
    with start(workers) as renderer:
        assert (renderer.synth_name, renderer.synth_version) == ("", "")
        found = by_key(renderer.render(given.items()))
        assert (renderer.synth_name, renderer.synth_version, renderer.restarts) == ("scripted", "1.0", [])
        assert len(children()) >= workers
    assert found.keys() == given.keys()
    for key, patch in found.items():
        assert_sounds_as(patch, given[key], spec)


def test_built_in_synthesizer_gives_the_bits_that_it_gives_in_this_process() -> None:
    spec = load_spec("subtractive")
    settings = SynthSettings("subtractive", spec)
    given = np.random.default_rng(0).normal(0.5, 0.5, (5, spec.width)).astype(np.float32)
    with PatchRenderer(settings, 2) as renderer:
        found = by_key(renderer.render(enumerate(given)))
    for key, patch in found.items():
        np.testing.assert_array_equal(patch.audio, open_synth(settings).render(spec.decode(given[key])))
    assert len(found) == 5


@pytest.mark.parametrize(
    ("fault", "restarts", "words"),
    [
        ("crash", 3, r"three workers \(crash: killed by signal 11: free\(\): invalid pointer\)"),
        ("error", 3, r"three workers \(error: RuntimeError: the plugin refused the state\)"),
        ("drift", 4, "drift: tone is 0.1, not 0.2"),  # The first drift only starts the search.
    ],
)
def test_patch_that_costs_three_workers_comes_without_sound(
    start: Start, spec: ParamSpec, fault: str, restarts: int, words: str
) -> None:
    given = rows(7)
    given[2] = row(BAD)
    with start(**{fault: 0.1}) as renderer:
        found = by_key(renderer.render(enumerate(given)))
        assert len(renderer.restarts) == restarts
    assert sorted(found) == list(range(7))
    with pytest.raises(AssertionError, match=words):
        assert_sounds_as(found.pop(2), given[2], spec)
    for key, patch in found.items():
        assert_sounds_as(patch, given[key], spec)


@pytest.mark.parametrize("fault", ["crash", pytest.param("hang", marks=pytest.mark.slow), "drift"])
def test_fault_of_a_moment_costs_a_worker_and_no_patch(start: Start, spec: ParamSpec, fault: str) -> None:
    given = [*rows(5), row(BAD)]
    with start(2, render_seconds=10.0 if fault == "hang" else 60.0, once=[fault], **{fault: 0.1}) as renderer:
        found = by_key(renderer.render(enumerate(given)))
        assert {restart.partition(": ")[0] for restart in renderer.restarts} == {fault}
        if fault != "hang":  # A busy machine may delay other workers as long as a hang.
            assert len(renderer.restarts) == 1
    assert sorted(found) == list(range(6))
    for key, patch in found.items():
        assert_sounds_as(patch, given[key], spec)


def test_what_is_no_sound_is_a_fault_and_costs_no_worker(start: Start) -> None:
    given = {
        "nan audio": row(0.1),
        "shape": row(0.2),
        "nan row": row(tone=np.nan),
        "long row": np.zeros(6),
        "infinite row": row(level=np.inf, tone=-np.inf),
        "clipped": row(0.3),
        "good": row(0.9),
    }
    with start(nan=0.1, shape=0.2, noisy_death=0.3) as renderer:
        found = by_key(renderer.render(given.items()))
        assert renderer.restarts == []
    faults = {key: patch.fault for key, patch in found.items() if patch.fault}
    assert faults == {
        "nan audio": "non-finite audio",
        "shape": "audio of shape (1, 12), not (2, 176400)",
        "nan row": "the row is no patch: column tone is NaN",
        "long row": "the row is no patch: a row of scripted has shape (5,), not (6,)",
    }
    assert np.all(found["clipped"].audio == 3.0)


def test_silence_is_a_result(start: Start) -> None:
    with start() as renderer:
        (patch,) = renderer.render([("silent", row(level=0.0))])
    np.testing.assert_array_equal(patch.audio, np.zeros((2, SAMPLES), np.float32))


def test_workers_stay_warm_from_call_to_call(start: Start, spec: ParamSpec) -> None:
    given = rows(12)
    before = children()
    with start(2) as renderer:
        workers = children() - before
        for first in range(0, 12, 4):
            found = by_key(renderer.render(enumerate(given[first : first + 4])))
            for key, patch in found.items():
                assert_sounds_as(patch, given[first + key], spec)
            assert sorted(found) == [0, 1, 2, 3]
        assert list(renderer.render([])) == []
        assert children() - before == workers


def test_key_of_a_patch_that_failed_may_come_again(start: Start, spec: ParamSpec) -> None:
    with start(crash=0.1) as renderer:
        for _ in range(2):
            (patch,) = renderer.render([(0, row(BAD))])
            assert patch.fault.startswith("it cost three workers")
        (patch,) = renderer.render([(0, row())])
    assert_sounds_as(patch, row(), spec)


def test_call_may_be_left_in_the_middle(start: Start, spec: ParamSpec) -> None:
    """The next call returns its own patches only, even if it uses the same keys."""
    given = rows(3)
    before = children()
    with start(2) as renderer:
        workers = children() - before
        for patch in renderer.render(enumerate([row(0.9)] * 100)):
            assert_sounds_as(patch, row(0.9), spec)
            break
        found = by_key(renderer.render(enumerate(given)))
        assert children() - before == workers
    assert sorted(found) == [0, 1, 2]
    for key, patch in found.items():
        assert_sounds_as(patch, given[key], spec)


def test_leaving_ends_processes_in_the_middle_of_a_render(start: Start) -> None:
    before = children()
    with start(2, hang=0.1) as renderer:
        assert next(renderer.render([(number, row(GOOD if number else BAD)) for number in range(20)])).audio is not None
        assert len(children() - before) == 2
    assert children() <= before


def test_interrupt_in_the_middle_of_a_message(start: Start, spec: ParamSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the workers, whose pipes may hold half a message. The next call starts new workers."""
    given = rows(4)

    def torn(worker: WorkerProcess) -> Any:
        os.read(worker.connection.fileno(), 10)
        raise KeyboardInterrupt

    before = children()
    with start(2) as renderer:
        with monkeypatch.context() as patched:
            patched.setattr(WorkerProcess, "receive", torn)
            with pytest.raises(KeyboardInterrupt):
                list(renderer.render(enumerate(given)))
        assert children() <= before
        found = by_key(renderer.render(enumerate(given)))
    assert sorted(found) == [0, 1, 2, 3]
    for key, patch in found.items():
        assert_sounds_as(patch, given[key], spec)


def test_presets_come_where_they_are_asked_for(start: Start, spec: ParamSpec) -> None:
    given = rows(5)
    with start(2) as renderer:
        assert [patch.preset for patch in renderer.render(enumerate(given))] == [None] * 5
        found = by_key(renderer.render(enumerate(given), presets=True))
        assert json.loads(renderer.preset(given[3]) or b"") == spec.decode(given[3])["level"]
    for key, patch in found.items():
        assert_sounds_as(patch, given[key], spec)
        assert json.loads(patch.preset or b"") == spec.decode(given[key])["level"]


def test_what_cannot_be_rendered_has_no_preset(start: Start) -> None:
    with start(crash=0.1) as renderer:
        assert [renderer.preset(row(BAD)), renderer.preset(row(tone=np.nan))] == [None, None]


def test_a_worker_measures_its_sounds(start: Start) -> None:
    given = [*rows(3), row(tone=np.nan)]
    with start(2) as renderer:
        heard = by_key(renderer.render(enumerate(given)))
        found = {patch.key: patch for patch in renderer.render(enumerate(given), measure=np.max)}
    for key in range(3):
        assert found[key].audio is None
        assert found[key].measured == np.max(heard[key].audio)
    assert found[3].measured is None
    assert found[3].fault == heard[3].fault != ""


def test_rows_are_taken_as_they_are_needed(start: Start) -> None:
    taken = itertools.count()
    with start(2) as renderer:
        next(renderer.render((number, row()) for number in taken))
    assert next(taken) <= 3 * 2 * MAX_BATCH


def test_rows_of_any_array_library(start: Start, spec: ParamSpec) -> None:
    """Workers have no JAX, so they cannot unpickle its arrays."""

    class DeviceArray:
        def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
            return row().astype(dtype)

        def __reduce__(self) -> Any:
            raise AssertionError("pickled")

    with start() as renderer:
        found = by_key(renderer.render([(0, DeviceArray()), (1, row().tolist())]))
    for patch in found.values():
        assert_sounds_as(patch, row(), spec)


def test_two_calls_at_once_lose_no_patch_unnoticed(start: Start) -> None:
    with start() as renderer:
        first = renderer.render(enumerate(rows(12)))
        next(first)
        assert len(list(renderer.render(enumerate(rows(2))))) == 2
        with pytest.raises(RuntimeError, match="another call"):
            list(first)


@pytest.mark.parametrize("script", [{"start": 1}, {}])
def test_synthesizer_that_cannot_be_opened_is_an_error_for_the_user(
    start: Start, spec: ParamSpec, script: dict[str, Any]
) -> None:
    renderer = start(2, **script) if script else PatchRenderer(SynthSettings("moog", spec), 2)
    words = "cannot find the wavetables" if script else "no synthesizer is called 'moog'"
    with renderer, pytest.raises(UserError, match=words):
        list(renderer.render(enumerate(rows(3))))


def test_a_renderer_is_ready_once_its_synthesizer_is_open(start: Start, spec: ParamSpec) -> None:
    with start(2) as renderer:
        renderer.wait_until_ready()
        assert (renderer.synth_name, renderer.synth_version) == ("scripted", "1.0")
        (patch,) = renderer.render([(0, row())])
    assert_sounds_as(patch, row(), spec)


def test_a_start_that_fails_once_is_tried_again(start: Start) -> None:
    with start(start=1, once=["start"]) as renderer:
        renderer.wait_until_ready()
        assert len(renderer.restarts) == 1


def test_a_renderer_that_cannot_open_its_synthesizer_is_never_ready(start: Start) -> None:
    with start(2, start=1) as renderer, pytest.raises(UserError, match="cannot find the wavetables"):
        renderer.wait_until_ready()


def test_no_workers_is_a_defect_of_the_caller(spec: ParamSpec) -> None:
    with pytest.raises(ValueError, match="0 workers"):
        PatchRenderer(SynthSettings("subtractive", spec), 0)


def test_worker_of_given_patches_imports_nothing_of_data_sets() -> None:
    """Importing the modules that store rows takes a second."""
    code = "import sys, data_pipeline.render.worker, data_pipeline.render.patch_renderer as _; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=REPOSITORY).split()
    assert {"pyloudnorm", "h5py", "jax", "data_pipeline.render.row_renderer"}.isdisjoint(modules)


class LevelSynth:
    """Renders a constant of 1e5 times the level; ``events`` has all calls in order."""

    name, version = "level", "1"

    def __init__(self) -> None:
        self.events: list[Any] = []

    def render(self, values: Mapping[str, Any], base: bytes | None = None) -> Audio:
        self.events.append("render")
        return np.full((2, SAMPLES), 1e5 * values["level"], np.float32)

    def verify(self) -> None:
        self.events.append("verify")

    def preset(self) -> bytes:
        self.events.append("preset")
        return b"preset"


def render_batch(spec: ParamSpec, *levels: float, **batch: Any) -> tuple[list[Any], tuple[RenderedPatch[int], ...]]:
    synth = LevelSynth()

    def announce(attempt: Attempt) -> None:
        synth.events.append(attempt)

    given = tuple(row(level) for level in levels)
    indices = tuple(range(10, 10 + len(levels)))
    rendered = PatchBatchRenderer(spec, synth).render(PatchBatch(indices, rows=given, **batch), announce)
    return synth.events, rendered


def test_each_patch_is_announced_and_the_batch_verified(spec: ParamSpec) -> None:
    events, rendered = render_batch(spec, 0.1, 0.2)
    assert events == [(10, 0), "render", (11, 0), "render", "verify"]
    assert [patch.key for patch in rendered] == [10, 11]


def test_a_preset_is_what_was_verified(spec: ParamSpec) -> None:
    """A preset read later might hold the next patch."""
    events, rendered = render_batch(spec, 0.1, 0.2, presets=True)
    assert events == [(10, 0), "render", "preset", (11, 0), "render", "preset", "verify"]
    assert [patch.preset for patch in rendered] == [b"preset", b"preset"]


def test_each_patch_is_verified_in_search_of_a_drift(spec: ParamSpec) -> None:
    events, _ = render_batch(spec, 0.1, 0.2, verify_each=True)
    assert events[:6] == [(10, 0), "render", "verify", (11, 0), "render", "verify"]


def test_forbidden_patches_are_left_out(spec: ParamSpec) -> None:
    events, rendered = render_batch(spec, 0.1, 0.2, forbidden=frozenset({(10, 0)}))
    assert events == [(11, 0), "render", "verify"]
    assert [patch.key for patch in rendered] == [11]


def test_sound_that_float16_cannot_hold_is_not_finite(spec: ParamSpec) -> None:
    _, rendered = render_batch(spec, 0.65, 0.66)
    assert [patch.fault for patch in rendered] == ["", "non-finite audio"]
