"""Rendering data sets with a scripted synthesizer: every fault ends in a whole data set or a clear stop."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest

from data_pipeline.console.append_log import RecordLog
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.partial_shard import log_path
from data_pipeline.shards.reader import AUDIO, MEL_SPEC, PARAM_ARRAY, ShardReader
from tests.data_pipeline.scripted_synth import SPEC, go_on, sine, waiting
from tests.helpers import (
    RENDER_SUBTRACTIVE,
    REPOSITORY,
    all_rows,
    assert_usage_error,
    is_alive,
    run_cli,
    started,
    wait_until,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    return tmp_path


def arguments(folder: Path, script: dict[str, Any] | None = None, **flags: Any) -> list[str]:
    """A small run: two shards of six rows, batches of three."""
    path = folder / "script.json"
    path.write_text(json.dumps(script or {}))
    values = {
        "output": folder / "out",
        "shards": "0-1",
        "samples_per_shard": 6,
        "workers": 2,
        "preset": path,
        "config.synth": "tests.data_pipeline.scripted_synth",
        "config.spec": folder / "spec.json",
        "config.batch_rows": 3,
        **{name.replace("__", "."): value for name, value in flags.items()},
    }
    return [f"--config={RENDER_SUBTRACTIVE}", *(f"--{name}={value}" for name, value in values.items())]


def render(folder: Path, script: dict[str, Any] | None = None, **flags: Any) -> subprocess.CompletedProcess:
    return run_cli("data_pipeline.render_shards", *arguments(folder, script, **flags), cwd=REPOSITORY)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out").glob("shard-*"))}


def check_rows(folder: Path, rows: int = 12) -> None:
    """Checks that every row's audio fits its label, and that the folder holds shards alone."""
    spec = load_spec(str(folder / "spec.json"))
    paths = sorted((folder / "out").glob("shard-*"))
    readers = [ShardReader(path) for path in paths]
    assert sum(map(len, readers)) == rows
    for reader in readers:
        assert reader.attrs["complete"]
        params = all_rows(reader, PARAM_ARRAY)
        for index in range(len(reader)):
            audio = reader.read(AUDIO, index)
            np.testing.assert_allclose(audio, sine(spec.decode(params[index])), atol=5e-4)
            assert reader.read(MEL_SPEC, index).max() == 0.0
    assert not list((folder / "out").glob(".*"))


def rejected(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out" / "rejected.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_stopped(result: subprocess.CompletedProcess, *words: str) -> None:
    """Checks that a run ends with one line that holds the words, and exit code 2."""
    assert result.returncode == 2, result.stderr
    *before, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert not any(line.startswith("error: ") for line in before)
    for word in words:
        assert word in last


def test_data_set_is_whole_and_described(folder: Path) -> None:
    result = render(folder, seed=7, config__min_loudness=-50)
    assert result.returncode == 0, result.stderr
    check_rows(folder)
    attributes = ShardReader(folder / "out" / "shard-1.h5").attrs
    spec = load_spec(str(folder / "spec.json"))
    assert attributes["spec_name"] == "scripted"
    assert attributes["spec_hash"] == spec.content_hash
    assert (attributes["seed"], attributes["first_sample_index"]) == (7, 6)
    assert (attributes["synth_name"], attributes["synth_version"]) == ("scripted", "1.0")
    assert (attributes["min_loudness"], attributes["max_peak"]) == (-50.0, 1.0)
    assert "12/12 rows" in result.stderr
    assert "rows/s" in result.stderr


def test_content_does_not_depend_on_workers_batches_or_shard_size(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert render(folder).returncode == 0
    assert (
        render(folder, output=other, workers=1, config__batch_rows=5, samples_per_shard=4, shards="0-2").returncode == 0
    )
    ours = [all_rows(ShardReader(folder / "out" / f"shard-{n}.h5"), PARAM_ARRAY) for n in range(2)]
    theirs = [all_rows(ShardReader(other / f"shard-{n}.h5"), PARAM_ARRAY) for n in range(3)]
    np.testing.assert_array_equal(np.concatenate(ours), np.concatenate(theirs))


def test_quiet_patches_are_redrawn_and_counted(folder: Path) -> None:
    result = render(folder, config__min_loudness=-16)
    assert result.returncode == 0, result.stderr
    check_rows(folder)
    levels = np.concatenate(
        [all_rows(ShardReader(folder / "out" / f"shard-{n}.h5"), PARAM_ARRAY)[:, 0] for n in (0, 1)]
    )
    assert levels.min() > 0.2
    assert " quiet" in result.stderr


@pytest.mark.slow
def test_clipped_and_non_finite_patches_are_redrawn_and_counted(folder: Path) -> None:
    result = render(folder, {"nan": 0.3, "noisy_death": 0.6})
    assert result.returncode == 0, result.stderr
    check_rows(folder)
    assert " clipped" in result.stderr
    assert " non_finite" in result.stderr


@pytest.mark.parametrize(
    "fault", ["crash", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("error", "shape", "drift"))]
)
def test_single_fault_costs_a_worker_and_no_row(folder: Path, fault: str) -> None:
    assert render(folder).returncode == 0
    whole = contents(folder)
    for path in (folder / "out").iterdir():
        path.unlink()
    result = render(folder, {fault: 0.5, "once": [fault]})
    assert result.returncode == 0, result.stderr
    assert contents(folder) == whole
    assert "workers restarted: 1 " in result.stderr
    assert not rejected(folder)


@pytest.mark.slow
def test_hanging_worker_is_replaced(folder: Path) -> None:
    result = render(folder, {"hang": 0.5, "once": ["hang"]}, config__render_seconds=10)
    assert result.returncode == 0, result.stderr
    check_rows(folder)
    # A worker that a busy machine delays for as long is replaced too.
    assert re.search(r"workers restarted: [1-9]\d* hang$", result.stderr, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["crash", "drift"])
def test_patch_that_kills_three_times_is_rejected_and_redrawn(folder: Path, fault: str) -> None:
    result = render(folder, {fault: 0.12}, workers=1)
    assert result.returncode == 0, result.stderr
    check_rows(folder)
    entries = rejected(folder)
    assert entries
    assert all(entry["row"][0] <= 0.12 and entry["reason"] == fault for entry in entries)
    assert ("signal 11: free(): invalid pointer" if fault == "crash" else "tone is 0.1") in entries[0]["detail"]
    assert f"{len(entries)} killed" in result.stderr
    # A drift is noticed at the end of its batch; only then is every render checked, to find the culprit.
    searches = len({entry["index"] // 3 for entry in entries}) if fault == "drift" else 0
    assert f"workers restarted: {3 * len(entries) + searches} {fault}" in result.stderr


@pytest.mark.slow
def test_rejected_patches_are_known_to_the_next_run(folder: Path) -> None:
    assert render(folder, {"crash": 0.12}, workers=1).returncode == 0
    entries, whole = rejected(folder), contents(folder)
    for path in (folder / "out").glob("shard-*"):
        path.unlink()
    result = render(folder, {"crash": 0.12}, workers=1)
    assert "a worker was lost" not in result.stderr
    assert rejected(folder) == entries
    assert contents(folder) == whole


@pytest.mark.slow
def test_worker_that_dies_silently_or_grows_is_replaced(folder: Path) -> None:
    result = render(folder, {"dies_silently_after": 5}, workers=1)
    assert result.returncode == 0, result.stderr
    check_rows(folder)
    assert "a worker was lost" in result.stderr
    for path in (folder / "out").iterdir():
        path.unlink()
    result = render(folder, {"grows": 100 << 20}, workers=1, config__max_worker_gib=0.5)
    assert result.returncode == 0, result.stderr
    check_rows(folder)
    assert "a worker was lost" in result.stderr


@pytest.mark.slow
def test_workers_that_never_start_stop_the_run(folder: Path) -> None:
    assert_stopped(render(folder, {"start": 1}), "die before they render", "code 3", "cannot find the wavetables")


@pytest.mark.slow
def test_synthesizer_that_always_raises_stops_the_run(folder: Path) -> None:
    result = render(folder, {"error": 1.0}, workers=1)
    assert_stopped(result, "die whatever the patch (error: RuntimeError: the plugin refused the state)")
    lines = result.stderr.splitlines()
    assert lines[0].startswith("0/12 rows")
    assert len([line for line in lines if line.startswith("a worker was lost (error: Runtime")]) == 15
    assert [line for line in lines if "Traceback" in line] == ["  | Traceback (most recent call last):"]
    assert any("in _error" in line for line in lines)
    assert lines[-1].startswith("error: render workers die whatever the patch")
    assert "sample 0: patch 4 is refused, it cost three workers" in lines
    assert not rejected(folder)  # The patches are not to blame.


@pytest.mark.slow
def test_patches_that_were_refused_when_the_run_was_stopped_are_noted(folder: Path) -> None:
    """No batch is committed after the refusal: the next patch stands still."""
    command = arguments(folder, {"crash": 0.12, "waits_after": 0}, workers=1)
    with started(["-m", "data_pipeline.render_shards", *command], folder / "stderr") as process:
        wait_until(lambda: waiting(folder / "script.json") == 1, process)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=300)
    assert [(entry["index"], entry["attempt"]) for entry in rejected(folder)] == [(0, 0)]


@pytest.mark.slow
def test_worker_that_fails_to_start_once_is_started_again(folder: Path) -> None:
    result = render(folder, {"start": 1, "once": ["start"]})
    assert result.returncode == 0, result.stderr
    check_rows(folder)


@pytest.mark.slow
def test_spec_without_sound_stops_the_run(folder: Path) -> None:
    assert_stopped(render(folder, {"dies_silently_after": 0}), "no patch was accepted for sample", "300 quiet")


@contextmanager
def begun(folder: Path, waits_after: int, workers: int = 2, **flags: Any) -> Iterator[subprocess.Popen]:
    """A run whose workers all stand still, each in its second batch, which it is given when its first is committed."""
    command = arguments(folder, {"waits_after": waits_after}, workers=workers, **flags)
    with started(["-m", "data_pipeline.render_shards", *command], folder / "stderr") as process:
        wait_until(lambda: waiting(folder / "script.json") == workers, process)
        yield process


@pytest.mark.parametrize(
    "signal_number",
    [signal.SIGKILL, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM))],
)
def test_stopped_run_goes_on_and_ends_in_the_same_bytes(folder: Path, signal_number: int) -> None:
    assert render(folder).returncode == 0
    whole = contents(folder)
    for path in (folder / "out").iterdir():
        path.unlink()
    with begun(folder, waits_after=3, config__batch_rows=2) as process:
        workers = psutil.Process(process.pid).children()
        process.send_signal(signal_number)
        process.wait(timeout=300)
    if signal_number != signal.SIGKILL:
        assert process.returncode == 130
        assert "of 12 rows are safe" in (folder / "stderr").read_text()
    wait_until(lambda: not any(map(is_alive, workers)))
    assert log_path(folder / "out" / "shard-0.h5").exists()
    result = render(folder)
    assert result.returncode == 0, result.stderr
    assert contents(folder) == whole


def test_killed_worker_is_replaced(folder: Path) -> None:
    with begun(folder, waits_after=4) as process:
        psutil.Process(process.pid).children()[0].kill()
        go_on(folder / "script.json")
        assert process.wait(timeout=300) == 0
    assert "workers restarted: 1 " in (folder / "stderr").read_text()
    check_rows(folder)


def test_two_runs_on_one_shard(folder: Path) -> None:
    (folder / "out").mkdir()
    first_run = RecordLog(log_path(folder / "out" / "shard-1.h5"))
    assert_usage_error(render(folder), "shard-1.h5.partial", "another run")
    assert list((folder / "out").iterdir()) == [first_run.path]
    first_run.close()
    assert render(folder).returncode == 0
    check_rows(folder)


@pytest.mark.slow
def test_full_disk_stops_with_all_committed_rows_intact(folder: Path) -> None:
    """A limit on file size stands for the full disk: writing fails half-way through a batch."""
    limited = f"ulimit -f 1200; exec {sys.executable} -m data_pipeline.render_shards " + " ".join(arguments(folder))
    result = subprocess.run(["bash", "-c", limited], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    assert "; 3 of its 6 rows are safe" in result.stderr.splitlines()[-1]
    assert list((folder / "out").glob("*.partial"))
    assert render(folder).returncode == 0
    check_rows(folder)


def test_finished_data_set_is_left_alone(folder: Path) -> None:
    assert render(folder).returncode == 0
    whole = contents(folder)
    result = render(folder)
    assert result.returncode == 0
    assert "12 rows in 2 shards are complete" in result.stdout
    assert contents(folder) == whole


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"seed": 5}, "seed"),
        pytest.param({"samples_per_shard": 7}, "shard", marks=pytest.mark.slow),
        pytest.param({"config__min_loudness": -40}, "min_loudness", marks=pytest.mark.slow),
    ],
)
def test_other_settings_are_refused(folder: Path, flags: dict[str, Any], word: str) -> None:
    """For finished shards, and for shards under way."""
    assert render(folder, shards="0").returncode == 0
    assert_usage_error(render(folder, shards="0", **flags), "shard-0.h5", word)
    with begun(folder, waits_after=4, workers=1, shards="2"):
        pass
    assert_usage_error(render(folder, shards="2", **flags), "shard-2.h5.partial", word)


@pytest.mark.slow
def test_other_synthesizer_version_is_refused(folder: Path) -> None:
    with begun(folder, waits_after=4, workers=1, shards="0"):
        pass
    assert_stopped(render(folder, {"version": "1.1"}, shards="0"), "has rows of scripted 1.0, this is scripted 1.1")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"config__spec": "moog"}, ["no spec is called 'moog'"]),
        ({"config__synth": "moog"}, ["no synthesizer is called 'moog': there are subtractive, surge_xt, dexed, vital"]),
        ({"shards": "3-1"}, ["3-1"]),
        ({"output": "/proc/nowhere"}, ["/proc/nowhere"]),
        ({"workers": 0}, ["workers"]),
        ({"seed": -1}, ["seed"]),
        ({"config__colour": "red"}, ["colour", "min_loudness"]),
    ],
)
def test_wrong_usage_is_one_line(folder: Path, flags: dict[str, Any], words: list[str]) -> None:
    assert_usage_error(render(folder, **flags), *words)


def test_a_synthesizer_that_cannot_be_opened_stops_the_run(folder: Path) -> None:
    assert_stopped(render(folder, config__synth="moog.synth"), "there is no module moog.synth")


def test_workers_import_no_accelerator_library() -> None:
    probe = "import sys, data_pipeline.render.worker; print(sorted({'jax', 'flax', 'synthjax'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", probe], text=True, cwd=REPOSITORY).strip() == "[]"


def test_shard_is_in_our_format(folder: Path) -> None:
    assert "6 rows in 1 shard are complete" in render(folder, shards="0").stdout
    with h5py.File(folder / "out" / "shard-0.h5") as file:
        assert file[AUDIO].dtype == np.float16
        assert file[AUDIO].chunks == (1, 2, 176400)
        assert file[MEL_SPEC].chunks == (1, 2, 128, 401)
        assert file[PARAM_ARRAY].dtype == np.float32
