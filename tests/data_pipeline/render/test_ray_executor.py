"""Rendering on Ray gives the same bytes, also with faults and on a cluster that changes during the run."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.render.row_renderer import Batch, RenderSettings
from data_pipeline.render.worker_pool import Loss, Supervision
from data_pipeline.synths.protocol import SynthSettings
from tests.data_pipeline.scripted_synth import SPEC
from tests.helpers import RENDER_SUBTRACTIVE, REPOSITORY, run_cli, started

SETTINGS = RenderSettings(SynthSettings("none", load_spec("subtractive")), 0, -55.0, 1.0, 10)
MODULE = "data_pipeline.render.ray_executor"


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """The address of a cluster of two cores. Ray's own limit of 30 s for its start is too short on a busy machine."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'synthjax[ray]'")
    command = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0", "--num-cpus=2"]
    environment = {"PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    with ExitStack() as stack:
        for _ in range(4):
            # Not in pytest's folder: the paths of sockets must be short.
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)))
            options = ["--include-dashboard=false", f"--temp-dir={folder}"]
            start = started([*command, *options], folder / "stderr", env=os.environ | environment)
            process = stack.enter_context(start)
            found = folder / "ray_current_cluster"
            while process.poll() is None and not (found.exists() and found.read_text()):
                time.sleep(0.1)
            if process.poll() is None:
                break
        yield found.read_text()


def render(folder: Path, name: str, script: dict[str, Any], *flags: str, **environment: str) -> Any:
    """Two shards of six rows in ``folder/name``."""
    (folder / "spec.json").write_text(json.dumps(SPEC))
    scripts = folder / f"script_{name}"
    scripts.mkdir()
    (scripts / "script.json").write_text(json.dumps(script))
    return run_cli(
        "data_pipeline.render_shards",
        f"--config={RENDER_SUBTRACTIVE}",
        f"--output={folder / name}",
        "--shards=0-1",
        "--samples_per_shard=6",
        "--workers=1",
        f"--preset={scripts / 'script.json'}",
        "--config.synth=tests.data_pipeline.scripted_synth",
        f"--config.spec={folder / 'spec.json'}",
        "--config.batch_rows=3",
        *flags,
        cwd=REPOSITORY,
        **environment,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_ray_renders_the_same_bytes_in_spite_of_a_crash(ray_address: str, tmp_path: Path) -> None:
    local = render(tmp_path, "local", {})
    assert local.returncode == 0, local.stderr
    ray = render(tmp_path, "ray", {"crash": 0.5, "once": ["crash"]}, "--executor=ray", RAY_ADDRESS=ray_address)
    assert ray.returncode == 0, ray.stderr
    assert "workers restarted: 1" in ray.stderr
    assert (tmp_path / "script_ray" / "crash.happened").exists()
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
def test_synthesizer_that_cannot_be_opened_is_one_line(ray_address: str, tmp_path: Path) -> None:
    result = render(tmp_path, "ray", {}, "--executor=ray", "--config.synth=moog.synth", RAY_ADDRESS=ray_address)
    assert result.returncode == 2, result.stderr
    # Ray may print warnings.
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "there is no module moog.synth" in line


def test_ray_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(UserError, match=r"pip install 'synthjax\[ray\]'"):
        __import__(MODULE)


class FakeCluster:
    """Ray's functions. Tasks finish in the order of submission; ``cpus`` may change at any time."""

    def __init__(self, cpus: float) -> None:
        self.cpus = cpus
        self.most_pending = 0
        self.cancelled: list[Batch] = []
        self.ended = False
        self.losses: dict[Batch, list[Loss]] = {}
        self.errors: dict[Batch, UserError] = {}

    def init(self, **options: Any) -> None:
        assert options["ignore_reinit_error"]

    def put(self, settings: RenderSettings) -> RenderSettings:
        return settings

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cpus} if self.cpus else {}

    def remote(self, settings: RenderSettings, supervision: Supervision, batch: Batch) -> Batch:
        assert settings is SETTINGS
        return batch

    def wait(self, pending: list[Batch], num_returns: int) -> tuple[list[Batch], list[Batch]]:
        self.most_pending = max(self.most_pending, len(pending))
        return pending[:num_returns], pending[num_returns:]

    def get(self, task: Batch) -> tuple[list[Loss], Batch | UserError]:
        return self.losses.get(task, []), self.errors.get(task, task)

    def cancel(self, task: Batch) -> None:
        self.cancelled.append(task)

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    pytest.importorskip("ray", reason="needs Ray: pip install 'synthjax[ray]'")
    from data_pipeline.render import ray_executor

    cluster = FakeCluster(4)
    monkeypatch.setattr(ray_executor, "ray", cluster)
    monkeypatch.setattr(ray_executor, "_render", SimpleNamespace(remote=cluster.remote))
    return cluster


def executor() -> Any:
    from data_pipeline.render.ray_executor import RayExecutor

    return RayExecutor(SETTINGS, Supervision())


def no_loss(loss: Loss) -> None:
    raise AssertionError(loss)


BATCHES = [Batch((number,)) for number in range(40)]


def test_tasks_are_as_many_as_keep_the_cores_busy(cluster: FakeCluster) -> None:
    source = iter(BATCHES)
    with executor() as ray:
        outcomes = ray.run(source, no_loss)
        next(outcomes)
        assert next(source) is BATCHES[8]
        assert [BATCHES[0], *outcomes] == BATCHES[:8] + BATCHES[9:]
    assert cluster.most_pending == 8


@pytest.mark.parametrize("cpus", [1.0, 0.0])
def test_nodes_may_leave_and_join(cluster: FakeCluster, cpus: float) -> None:
    """While more tasks run than the smaller cluster has room for, no new ones start."""
    done = []
    with executor() as ray:
        for number, outcome in enumerate(ray.run(BATCHES, no_loss)):
            cluster.cpus = {3: cpus, 20: 16.0}.get(number, cluster.cpus)
            done.append(outcome)
    assert done == BATCHES
    assert cluster.most_pending > 8


def test_leaving_cancels_what_is_under_way(cluster: FakeCluster) -> None:
    with executor() as ray:
        next(ray.run(BATCHES, no_loss))
    assert cluster.cancelled == BATCHES[1:8]
    assert cluster.ended


def test_losses_are_reported_with_the_batch_that_they_delayed_and_before_the_end(cluster: FakeCluster) -> None:
    crash, error = Loss("crash", "signal 11", ""), Loss("error", "KeyError", "")
    cluster.losses = {BATCHES[1]: [crash], BATCHES[2]: [error, error]}
    cluster.errors = {BATCHES[2]: UserError("render workers die whatever the patch")}
    told: list[Any] = []
    with executor() as ray, pytest.raises(UserError, match="whatever the patch"):
        told.extend(ray.run(BATCHES, told.append))
    assert told == [BATCHES[0], crash, BATCHES[1], error, error]


def test_a_task_returns_what_it_has_cost_even_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'synthjax[ray]'")
    from data_pipeline.render import ray_executor

    loss, end = Loss("error", "KeyError", ""), UserError("render workers die whatever the patch")

    class Pool:
        def run(self, batches: list[Batch], on_loss: Any) -> Iterator[Batch]:
            on_loss(loss)
            if batches[0] is BATCHES[1]:
                raise end
            yield from batches

        def close(self) -> None:
            pools.append(Pool())

    pools = [Pool()]
    monkeypatch.setattr(ray_executor, "WorkerPool", lambda *_: pools[-1])
    render_one = ray_executor._render._function
    assert render_one(SETTINGS, Supervision(), BATCHES[0]) == ([loss], BATCHES[0])
    assert render_one(SETTINGS, Supervision(), BATCHES[1]) == ([loss], end)
    assert len(pools) == 2  # The failed pool is closed, and the next task starts another.
    assert render_one(SETTINGS, Supervision(), BATCHES[2]) == ([loss], BATCHES[2])
    ray_executor._pool.cache_clear()
