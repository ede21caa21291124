"""The validation probe: its results, its share of processor time, and its failures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import ml_collections
import numpy as np
import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_pipeline.audio.metrics import mss
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec, load_spec
from data_pipeline.render.patch_renderer import PatchBatch, RenderedPatch
from data_pipeline.shards.mel_stats import STATS_FILE, compute_stats, save_stats
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.splits import write_splits
from data_pipeline.synths.choice import open_synth, synth_for
from data_pipeline.synths.protocol import SynthSettings
from synthjax.runs.workdir import Workdir
from synthjax.training import probe as probe_module
from synthjax.training.probe import Pace, Probe, ProbeRenderer, ProbeSettings, ProbeWorker, Rendered, start_probe
from synthjax.training.writers import Writers
from tests.data_pipeline import scripted_synth
from tests.helpers import REPOSITORY, is_alive, make_rows, started, tiny_flags, wait_until, write

SPEC = load_spec("subtractive")
SECONDS = 60  # Nothing here takes so long.
TARGETS = np.stack([np.full((2, 100), level, np.float16) for level in (0.25, 0.5)])
ROWS = np.zeros((5, SPEC.width))
ALL = 1.0  # Of the processors' time.


def rendered(sound: int, distance: float = 1.0) -> Rendered:
    return Rendered(sound, TARGETS[sound], distance, np.zeros((4, 4, 3), np.uint8))


@dataclass
class FakeWorker:
    """Answers when ``let`` is set."""

    answer: Callable[[np.ndarray], list[Rendered]] = lambda rows: [rendered(0, 2.0), rendered(1, 4.0)]
    let: threading.Event = field(default_factory=threading.Event)
    asked: list[np.ndarray] = field(default_factory=list)
    closed: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def render(self, rows: np.ndarray) -> list[Rendered]:
        self.asked.append(rows)
        assert self.let.wait(SECONDS)
        return self.answer(rows)


@dataclass
class Bench:
    """A probe that writes to a workdir, and what it says."""

    worker: FakeWorker
    workdir: Workdir
    writers: Writers
    probe: Probe
    said: list[str]

    def idle(self) -> None:
        assert self.probe._idle.wait(SECONDS)

    def events(self) -> EventAccumulator:
        self.probe.close()
        self.writers.close()
        return events(self.workdir)


@pytest.fixture
def bench(tmp_path: Path, tiny_config: ml_collections.ConfigDict):
    workdir = Workdir(tmp_path)
    said: list[str] = []
    writers = Writers.open(workdir, tiny_config, 0)
    worker = FakeWorker()
    yield Bench(worker, workdir, writers, probe := Probe(worker, TARGETS, writers, said.append), said)
    worker.let.set()
    probe.close()
    probe._thread.join(SECONDS)


def events(workdir: Workdir) -> EventAccumulator:
    accumulator = EventAccumulator(str(workdir.tensorboard), size_guidance={"images": 0, "audio": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator


def test_results_are_in_tensorboard_and_not_in_metrics_jsonl(bench: Bench) -> None:
    bench.worker.let.set()
    for step in (10, 20):
        bench.probe.submit(step, ROWS)
        bench.idle()
    found = bench.events()
    assert bench.said == []
    assert [len(rows) for rows in bench.worker.asked] == [2, 2]
    steps = {tag: [event.step for event in found.Audio(tag)] for tag in found.Tags()["audio"]}
    assert steps == {
        "probe/0/target": [10], "probe/1/target": [10], "probe/0/prediction": [10, 20], "probe/1/prediction": [10, 20]
    }  # fmt: skip
    assert set(found.Tags()["images"]) == {"probe/0/spectrograms", "probe/1/spectrograms"}
    assert [(event.step, event.value) for event in found.Scalars("probe/mss")] == [(10, 3.0), (20, 3.0)]
    assert [event.value for event in found.Scalars("probe/not_rendered")] == [0.0, 0.0]
    assert bench.workdir.metrics.read_bytes() == b""


def test_rows_that_come_too_soon_are_skipped_with_one_warning(bench: Bench) -> None:
    for step in (10, 20, 30):
        bench.probe.submit(step, ROWS)
    bench.worker.let.set()
    bench.idle()
    bench.probe.submit(40, ROWS)
    bench.idle()
    assert len(bench.worker.asked) == 2
    assert [event.step for event in bench.events().Scalars("probe/mss")] == [10, 40]
    assert len(bench.said) == 1
    assert "step 20" in bench.said[0]


def raising(error: Exception) -> Callable[[np.ndarray], list[Rendered]]:
    def answer(rows: np.ndarray) -> list[Rendered]:
        raise error

    return answer


@pytest.mark.parametrize("error", [UserError("the plugin is\ndamaged"), OSError("the plugin is damaged")])
def test_a_failure_is_one_line_and_turns_the_probe_off(bench: Bench, error: Exception) -> None:
    bench.worker.answer = raising(error)
    bench.worker.let.set()
    bench.probe.submit(10, ROWS)
    bench.probe._thread.join(SECONDS)
    for step in (20, 30):
        bench.probe.submit(step, ROWS)
    assert bench.said == ["the validation probe is off: the plugin is damaged"]
    assert (len(bench.worker.asked), bench.worker.closed) == (1, True)
    assert bench.events().Tags()["audio"] == []


def test_sounds_that_could_not_be_rendered_are_counted(bench: Bench) -> None:
    bench.worker.let.set()
    bench.worker.answer = lambda rows: [rendered(1, 4.0)]
    bench.probe.submit(10, ROWS)
    bench.idle()
    bench.worker.answer = lambda rows: []
    bench.probe.submit(20, ROWS)
    bench.idle()
    found = bench.events()
    assert [event.value for event in found.Scalars("probe/not_rendered")] == [1.0, 2.0]
    assert [(event.step, event.value) for event in found.Scalars("probe/mss")] == [(10, 4.0)]


def test_closing_waits_for_a_probe_under_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "GRACE_SECONDS", SECONDS)
    bench.probe.submit(10, ROWS)
    threading.Timer(0.1, bench.worker.let.set).start()
    assert bench.events().Tags()["scalars"] == ["probe/not_rendered", "probe/mss"]
    assert bench.worker.closed


@pytest.mark.parametrize("fails", [False, True])
def test_closing_does_not_wait_for_long_and_what_comes_later_is_dropped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(probe_module, "GRACE_SECONDS", 0.05)
    bench.worker.answer = raising(OSError("too late")) if fails else bench.worker.answer
    bench.probe.submit(10, ROWS)
    bench.probe.close()
    assert not bench.worker.closed
    bench.worker.let.set()
    bench.probe._thread.join(SECONDS)
    assert bench.worker.closed
    assert bench.said == []
    assert bench.events().Tags()["audio"] == []


def test_closing_an_idle_probe_ends_its_thread(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "GRACE_SECONDS", SECONDS)
    bench.probe.close()
    assert not bench.probe._thread.is_alive()
    assert bench.worker.closed
    bench.probe.close()


# The worker's pace.


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The processor time of this process as the test sets it, and the rests that were taken."""
    clocks: dict[str, Any] = {"worked": 100.0, "rests": []}
    monkeypatch.setattr(probe_module.time, "process_time", lambda: clocks["worked"])
    monkeypatch.setattr(probe_module.time, "sleep", clocks["rests"].append)
    monkeypatch.setattr(probe_module, "usable_cores", lambda: 2)
    return clocks


def test_a_worker_rests_until_it_has_taken_its_share_of_all_processors(clocks: dict[str, Any]) -> None:
    pace = Pace(0.01)
    for worked in (0.5, 0.25, 0.0):
        clocks["worked"] += worked
        pace.rest()
    assert clocks["rests"] == pytest.approx([24.5, 12.25, 0.0])  # 0.5 s of 25 s on two processors are 1 %.


def test_a_worker_that_may_take_a_processor_never_rests(clocks: dict[str, Any]) -> None:
    pace = Pace(0.5)
    clocks["worked"] += 3.0
    pace.rest()
    assert clocks["rests"] == [0.0]


class NoPatches:
    """Renders silence for whatever it is given."""

    def render(self, batch: Any, announce: Callable[[Any], None]) -> tuple[RenderedPatch[int], ...]:
        return tuple(RenderedPatch(index, np.zeros((2, 176400), np.float32)) for index in batch.indices)


def test_the_worker_rests_before_and_after_it_renders() -> None:
    rests: list[int] = []

    class Counted:
        def rest(self) -> None:
            rests.append(1)

    renderer = ProbeRenderer(NoPatches(), np.zeros((1, 2, 176400)), Counted())  # type: ignore[arg-type]
    (one,) = renderer.render(PatchBatch((0,), rows=(ROWS[0],)), lambda attempt: None)
    assert (one.sound, len(rests)) == (0, 2)


# Real workers.


@pytest.fixture(scope="module")
def sounds() -> tuple[np.ndarray, np.ndarray]:
    """Two rows of the built-in synthesizer, and their audio as it is stored."""
    synth = open_synth(synth_for(SPEC))
    rows = np.random.default_rng(3).uniform(0.2, 0.8, (2, SPEC.width)).astype(np.float32)
    return rows, np.stack([synth.render(SPEC.decode(row)) for row in rows]).astype(np.float16)


@pytest.mark.slow
def test_the_worker_compares_each_row_with_its_own_target(sounds: tuple[np.ndarray, np.ndarray]) -> None:
    rows, audio = sounds
    with ProbeWorker(ProbeSettings(synth_for(SPEC), audio, ALL)) as worker:
        right, crossed = worker.render(rows), worker.render(rows[::-1])
        (process,) = worker._pool._workers
        assert psutil.Process(process._process.pid).nice() == probe_module.LOWEST_PRIORITY
    assert process._process.returncode is not None
    assert [one.sound for one in (*right, *crossed)] == [0, 1, 0, 1]
    for sound in range(2):
        np.testing.assert_array_equal(right[sound].audio, audio[sound])
        np.testing.assert_array_equal(crossed[sound].audio, audio[1 - sound])
        assert right[sound].mss == 0.0
        assert crossed[sound].mss == pytest.approx(mss(*audio.astype(np.float32)))
        assert right[sound].picture.shape == crossed[sound].picture.shape
        assert (right[sound].picture != crossed[sound].picture).any()


def scripted_spec(folder: Path) -> ParamSpec:
    (folder / "spec.json").write_text(json.dumps(scripted_synth.SPEC))
    return load_spec(str(folder / "spec.json"))


@pytest.mark.slow
def test_a_row_that_crashes_the_worker_is_missing_and_the_rest_are_rendered(tmp_path: Path) -> None:
    spec = scripted_spec(tmp_path)
    (tmp_path / "script.json").write_text(json.dumps({"crash": 0.1}))
    synth = SynthSettings("tests.data_pipeline.scripted_synth", spec, preset=str(tmp_path / "script.json"))
    rows = np.full((2, spec.width), 0.5)
    rows[0, 0] = 0.0
    with ProbeWorker(ProbeSettings(synth, np.full((2, 2, 176400), 0.1, np.float16), ALL)) as worker:
        assert [one.sound for one in worker.render(rows)] == [1]
        assert [one.sound for one in worker.render(rows[::-1])] == [0]  # Nothing is held against a row's successor.


def test_the_worker_does_without_jax() -> None:
    program = "import sys, synthjax.training.probe; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0


def test_without_a_renderer_there_is_no_probe_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assert start_probe(scripted_spec(tmp_path), TARGETS, Writers([]), said.append) is None
    monkeypatch.setenv("SURGE_XT_PLUGIN", "/nowhere/Surge XT.vst3")
    assert start_probe(load_spec("surge_simple"), TARGETS, Writers([]), said.append) is None
    assert len(said) == 2
    assert all(line.startswith("no validation probe: ") and "\n" not in line for line in said)
    assert "no synthesizer here knows spec scripted" in said[0]
    assert "/nowhere/Surge XT.vst3" in said[1]
    assert "environment variable SURGE_XT_PLUGIN" in said[1]
    assert not any("--" in line for line in said)  # Training has no such flags.


# Training runs.


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that calls itself sounds of the built-in synthesizer: 8 rows to train on, 3 to validate with."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "shards").mkdir()
    for number, rows in enumerate((8, 3)):
        write(folder / "shards" / f"shard-{number}.h5", make_rows(number, rows, SPEC.width))
    write_splits(folder / "shards", folder, {"train": [0], "val": [1]})
    save_stats(folder / STATS_FILE, compute_stats(ShardReader(folder / "train.h5")))
    return folder


# The end of the run waits for the worker, which takes all the processor time that it needs.
UNHURRIED = """
import runpy, sys
from synthjax.training import probe
probe.GRACE_SECONDS, probe.PROCESSOR_SHARE = 500, 1.0
sys.argv = sys.argv[1:]
runpy.run_module("synthjax.train", run_name="__main__", alter_sys=True)
"""


def trained(root: Path, workdir: Path, **changes: Any) -> Workdir:
    values = {"data__spec": "subtractive", "train__steps": 3, "train__eval_every": 3}
    command = [sys.executable, "-c", UNHURRIED, "synthjax.train", *tiny_flags(root, workdir, **values, **changes)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return Workdir(workdir)


@pytest.mark.slow
def test_a_probe_writes_sounds_and_changes_no_figure(root: Path, tmp_path: Path) -> None:
    with_probe = trained(root, tmp_path / "with")
    without = trained(root, tmp_path / "without", validation__probe_sounds=0)
    assert with_probe.metrics.read_bytes() == without.metrics.read_bytes()
    assert b"probe" not in with_probe.metrics.read_bytes()
    pictures = {"assignment", "token_similarity", "loss_by_time", "parameter_mse"}
    found, silent = events(with_probe), events(without)
    names = [f"probe/{sound}" for sound in range(3)]
    assert set(found.Tags()["images"]) == pictures | {f"{name}/spectrograms" for name in names}
    assert set(found.Tags()["audio"]) == {f"{name}/{kind}" for name in names for kind in ("target", "prediction")}
    assert found.Audio("probe/2/target")[0].sample_rate == 44100
    assert all(event.value > 1.0 for event in found.Scalars("probe/mss"))
    assert {"val/loss", "val/loss_t0.1", "val/loss_t0.9"} <= set(found.Tags()["scalars"])
    assert set(silent.Tags()["images"]) == pictures
    assert silent.Tags()["audio"] == []


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_no_worker_outlives_a_run(root: Path, tmp_path: Path, number: int, code: int) -> None:
    changes = {"data__spec": "subtractive", "train__steps": 100_000, "train__eval_every": 1_000}
    command = ["-m", "synthjax.train", *tiny_flags(root, tmp_path / "run", **changes)]
    metrics = tmp_path / "run" / "metrics.jsonl"
    with started(command, tmp_path / "stderr") as process:
        wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if "data_pipeline.render.worker" in child.cmdline()]
        assert len(workers) == 1
        process.send_signal(number)
        assert process.wait(timeout=300) == code
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    wait_until(lambda: not any(map(is_alive, workers)))
