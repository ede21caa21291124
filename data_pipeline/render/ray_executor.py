"""Renders batches on a Ray cluster (extra ``ray``) with Ray's scheduling and retries.

Each Ray task runs one supervised worker process, so that a plugin that crashes or hangs does not harm Ray. Ray renders
the batches of a lost node on another one. Every node needs this package, and the plugin at the same path. RAY_ADDRESS
names the cluster; without it Ray starts one on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Self

from data_pipeline.console.cli import UserError
from data_pipeline.render.row_renderer import RenderSettings
from data_pipeline.render.worker_messages import Batch
from data_pipeline.render.worker_pool import Loss, Outcome, Supervision, WorkerPool
from data_pipeline.shards.row_compression import RenderedBatch

try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise UserError("--executor=ray needs Ray: pip install 'synthjax[ray]'") from error

# How often a task is repeated when its node is lost.
MAX_RETRIES = 5

Done = tuple[list[Loss], Outcome[RenderedBatch] | UserError]
"""The result of a task: the lost workers, and the batch or the reason why it cannot be rendered."""


class RayExecutor:
    """Runs a task a batch, on one core each. Use as a context manager: leaving it cancels unfinished tasks."""

    def __init__(self, settings: RenderSettings, supervision: Supervision) -> None:
        ray.init(ignore_reinit_error=True, logging_level="ERROR", log_to_driver=False)
        # Stored once on each node: a mixture of many patches is too large to send with every task.
        self._settings, self._supervision = ray.put(settings), supervision
        self._pending: list[ray.ObjectRef] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._pending:
            ray.cancel(task)
        ray.shutdown()

    def run(self, batches: Iterable[Batch], on_loss: Callable[[Loss], None]) -> Iterator[Outcome[RenderedBatch]]:
        """Renders all batches and yields each when it is done, in any order. Raises UserError as ``WorkerPool`` does.

        Calls ``on_loss`` for the lost workers of a batch when the batch is done.
        """
        source = iter(batches)
        while True:
            # Two tasks a core keep the cores busy and hold only a part of the data set in Ray's memory.
            free = max(2, 2 * int(ray.cluster_resources().get("CPU", 1))) - len(self._pending)
            self._pending += [
                _render.remote(self._settings, self._supervision, batch) for batch in islice(source, max(0, free))
            ]
            if not self._pending:
                return
            (done,), self._pending = ray.wait(self._pending, num_returns=1)
            try:
                losses, result = ray.get(done)
            except RayError as error:
                raise UserError(f"Ray gave up: {error}") from error
            for loss in losses:
                on_loss(loss)
            if isinstance(result, UserError):
                raise result
            yield result


@ray.remote(num_cpus=1, max_retries=MAX_RETRIES)
def _render(settings: RenderSettings, supervision: Supervision, batch: Batch) -> Done:
    pool = _pool(settings, supervision)
    losses: list[Loss] = []
    try:
        (outcome,) = pool.run([batch], losses.append)
        return losses, outcome
    except BaseException as error:
        pool.close()
        _pool.cache_clear()
        if isinstance(error, UserError):
            return losses, error
        raise


@cache
def _pool(settings: RenderSettings, supervision: Supervision) -> WorkerPool:
    """The pool of this Ray worker process, kept from task to task."""
    return WorkerPool(settings, 1, supervision)
