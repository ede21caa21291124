"""Renders batches on a Ray cluster (extra ``ray``): the same plan, with Ray's scheduling and retries.

Each task runs one supervised worker process of its own, so that a plugin that crashes or hangs costs Ray nothing. A
node that is lost costs the batches it had, which Ray renders elsewhere. Workers need this package, and the plugin at
the same path, on every node. The cluster is the one that RAY_ADDRESS names, else one on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Self

from data_pipeline.batch_renderer import Batch
from data_pipeline.cli import UserError
from data_pipeline.row_renderer import RenderedBatch, RenderSettings
from data_pipeline.worker_pool import Loss, Outcome, Supervision, WorkerPool

try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise UserError("--executor=ray needs Ray: pip install 'synthjax[ray]'") from error

# A task is done again this often when its node is lost.
MAX_RETRIES = 5

Done = tuple[list[Loss], Outcome[RenderedBatch] | UserError]
"""What a task comes to: the workers that it has cost, and the batch, or why it cannot be rendered."""


class RayExecutor:
    """Tasks on a cluster, one core each. Use as a context manager: leaving it cancels what is under way."""

    def __init__(self, settings: RenderSettings, supervision: Supervision) -> None:
        ray.init(ignore_reinit_error=True, logging_level="ERROR", log_to_driver=False)
        self._settings, self._supervision = settings, supervision
        self._pending: list[ray.ObjectRef] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._pending:
            ray.cancel(task)
        ray.shutdown()

    def run(self, batches: Iterable[Batch], on_loss: Callable[[Loss], None]) -> Iterator[Outcome[RenderedBatch]]:
        """Renders all batches and yields each as it is done, in any order. Raises UserError as ``WorkerPool`` does.

        ``on_loss`` hears of the workers that a batch has cost when the batch is done.
        """
        source = iter(batches)
        while True:
            # Two tasks a core keep the cores busy, without holding the whole data set in Ray's memory.
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
    """Ray's worker process keeps its render worker from task to task."""
    return WorkerPool(settings, 1, supervision)
