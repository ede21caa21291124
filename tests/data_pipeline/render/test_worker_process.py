"""Render workers as real processes."""

from __future__ import annotations

import json
import os
import struct
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest

from data_pipeline.params.spec import load_spec
from data_pipeline.render.row_renderer import Batch, RenderSettings
from data_pipeline.render.worker_pool import Loss, Supervision, WorkerPool
from data_pipeline.render.worker_process import WorkerProcess
from data_pipeline.synths.protocol import SynthSettings
from tests.data_pipeline.scripted_synth import SPEC


def _settings(folder: Path, **script: object) -> RenderSettings:
    (folder / "spec.json").write_text(json.dumps(SPEC))
    (folder / "script.json").write_text(json.dumps(script))
    synth = SynthSettings(
        "tests.data_pipeline.scripted_synth",
        load_spec(str(folder / "spec.json")),
        preset=str(folder / "script.json"),
    )
    return RenderSettings(synth, 0, -55.0, 1.0, 10)


def test_leaving_the_pool_ends_its_processes(tmp_path: Path) -> None:
    """One process is in the middle of a render that never ends. None is left as a zombie."""
    before = set(psutil.Process().children())
    with WorkerPool(_settings(tmp_path, hang=1.0, once=["hang"]), 2, Supervision(60.0)) as pool:
        losses: list[Loss] = []
        outcome = next(iter(pool.run([Batch((0,)), Batch((1,)), Batch((2,))], losses.append)))
        assert (outcome.synth_name, outcome.synth_version, losses) == ("scripted", "1.0", [])
        assert len(set(psutil.Process().children()) - before) == 2
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("written", [b"", struct.pack("!i", 100)[:2], struct.pack("!i", 100) + b"half of it"])
def test_a_worker_killed_in_the_middle_of_a_message_is_a_dead_worker(tmp_path: Path, written: bytes) -> None:
    worker = WorkerProcess(_settings(tmp_path), 60.0)
    worker.kill()
    worker.connection, theirs = Pipe()
    os.write(theirs.fileno(), written)
    theirs.close()
    with pytest.raises(EOFError):
        worker.receive()
    worker.connection.close()


def test_what_a_synthesizer_raised_is_in_the_log_of_its_worker(tmp_path: Path) -> None:
    losses: list[Loss] = []
    with WorkerPool(_settings(tmp_path, error=1.0, once=["error"]), 1, Supervision(60.0)) as pool:
        list(pool.run([Batch((0,))], losses.append))
    (loss,) = losses
    assert (loss.reason, loss.detail) == ("error", "RuntimeError: the plugin refused the state")
    assert loss.log.startswith("Traceback (most recent call last):\n")
    assert "in _error" in loss.log
    assert loss.log.endswith("\nRuntimeError: the plugin refused the state")
