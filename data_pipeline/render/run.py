"""A rendering run: finds the rows that the shards lack, has them rendered, commits them and finishes the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_pipeline.console.atomic import make_folder
from data_pipeline.render.progress import RenderProgress
from data_pipeline.render.rejected import RejectedPatches
from data_pipeline.render.row_renderer import SOUNDING, RenderSettings
from data_pipeline.render.worker_messages import Attempt, Batch
from data_pipeline.render.worker_pool import HopelessError, Loss, Outcome, Rejection
from data_pipeline.shards.partial_shard import Identity, PartialShard, check_finished, remove_log, shard_identity
from data_pipeline.shards.reader import ShardAttributes
from data_pipeline.shards.row_compression import RenderedBatch


@dataclass(frozen=True)
class Plan:
    """Shards ``numbers`` of ``samples_per_shard`` rows in ``output``, rendered ``batch_rows`` at a time.

    Shard n holds the samples from n * samples_per_shard on.
    """

    settings: RenderSettings
    output: Path
    numbers: tuple[int, ...]
    samples_per_shard: int
    batch_rows: int

    def path(self, number: int) -> Path:
        """The file of shard ``number``."""
        return self.output / f"shard-{number}.h5"


class Executor(Protocol):
    """Renders batches: a ``WorkerPool`` on this machine, or a ``RayExecutor`` on a cluster."""

    def run(self, batches: Iterable[Batch], on_loss: Callable[[Loss], None]) -> Iterator[Outcome[RenderedBatch]]:
        """Renders all batches and yields each when it is done, in any order; calls ``on_loss`` for lost workers."""
        ...


def open_shards(plan: Plan) -> list[PartialShard]:
    """Opens and locks every shard of the plan that is not finished.

    Raises UserError where a finished or begun shard belongs to another data set, or is open in another run.
    """
    make_folder(plan.output)
    with ExitStack() as opened:
        shards, finished = [], []
        for number in plan.numbers:
            path, identity = plan.path(number), _identity(plan, number)
            shard = None if path.exists() else opened.enter_context(PartialShard(path, identity))
            # Check again under the log's lock: another run may have finished the shard in between.
            if shard and not path.exists():
                shards.append(shard)
                continue
            if shard:
                shard.close()
            finished.append(check_finished(path, identity))
            remove_log(path)
        for shard in shards:
            for synth in finished[:1]:
                shard.require_synth(*synth)
        opened.pop_all()
    return shards


def _identity(plan: Plan, number: int) -> Identity:
    spec, settings = plan.settings.synth.spec, plan.settings
    attributes = ShardAttributes(
        spec_name=spec.name,
        spec_hash=spec.content_hash,
        seed=settings.seed,
        first_sample_index=number * plan.samples_per_shard,
        synth_name="",
        synth_version="",
        min_loudness=settings.min_loudness,
        max_peak=settings.max_peak,
        prior_hash=settings.prior_hash,
    )
    return shard_identity(attributes, plan.samples_per_shard, spec.width, store_audio=settings.store_audio)


def render(plan: Plan, shards: list[PartialShard], executor: Executor, progress: RenderProgress) -> None:
    """Renders the rows that the shards lack and finishes each complete shard.

    Raises UserError where rows cannot be rendered or written. Committed rows stay, and rendering the same plan again
    continues from there.
    """
    rejected = RejectedPatches(plan.output, plan.settings)
    by_first = {shard.indices.start: shard for shard in shards}
    refused: list[Rejection] = []

    def on_loss(loss: Loss) -> None:
        progress.lost(loss)
        if patch := loss.rejection:
            refused.append(patch)
            progress.say(f"sample {patch.index}: patch {patch.attempt} is refused, it cost three workers")

    batches = _batches(plan, shards, rejected.read())
    with _saved(refused, rejected) as save, _finisher(progress) as finish:
        for shard in shards:
            if shard.complete:  # The run before ended after its last batch and before finishing the shard.
                finish(shard)
        for outcome in executor.run(batches, on_loss):
            for index, attempt in outcome.batch.sounding:
                refused.append(Rejection(index, attempt, SOUNDING, "in a fresh instance, too"))
                progress.say(f"sample {index}: patch {attempt} is refused, it sounds before its note")
            save()
            shard = by_first[outcome.batch.rows[0].index // plan.samples_per_shard * plan.samples_per_shard]
            shard.commit(outcome.batch, outcome.synth_name, outcome.synth_version)
            progress.update(len(outcome.batch.rows), outcome.batch.refused)
            if shard.complete:
                finish(shard)


@contextmanager
def _saved(refused: list[Rejection], rejected: RejectedPatches) -> Iterator[Callable[[], None]]:
    """Yields ``save()``, which moves the refused patches to the file; leaving the context saves the rest.

    After a HopelessError the rest is dropped: the patches refused last, with no batch in between, are not to blame.
    """

    def save() -> None:
        while refused:
            rejected.append(refused.pop(0))

    try:
        yield save
    except HopelessError:
        refused.clear()
        raise
    finally:
        save()


def _batches(plan: Plan, shards: list[PartialShard], rejected: frozenset[Attempt]) -> Iterator[Batch]:
    for shard in shards:
        missing = shard.missing
        for start in range(0, len(missing), plan.batch_rows):
            indices = tuple(missing[start : start + plan.batch_rows])
            yield Batch(indices, frozenset(attempt for attempt in rejected if attempt[0] in indices))


@contextmanager
def _finisher(progress: RenderProgress) -> Iterator[Callable[[PartialShard], None]]:
    """Yields ``finish(shard)``, which writes out a shard in a thread beside the rendering: a large one takes long."""
    futures: list[Future] = []

    def finish(shard: PartialShard) -> None:
        shard.finish()
        progress.say(f"{shard.path} is complete")

    def start(shard: PartialShard) -> None:
        for future in futures:
            if future.done():
                future.result()  # Raises the error of an earlier shard, such as a full disk.
        futures.append(executor.submit(finish, shard))

    with ThreadPoolExecutor(max_workers=1) as executor:
        try:
            yield start
        except BaseException:
            if not all(future.done() for future in futures):
                progress.say("stopping when the shard that is being written is complete")
            raise
    for future in futures:
        future.result()
