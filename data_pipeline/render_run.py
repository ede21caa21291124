"""A rendering run: which rows of which shards are wanting, and how they get there, whoever renders them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_pipeline.atomic import make_folder
from data_pipeline.batch_renderer import Attempt, Batch
from data_pipeline.partial_shard import Identity, PartialShard, check_finished, remove_log, shard_identity
from data_pipeline.rejected import RejectedPatches
from data_pipeline.render_progress import RenderProgress
from data_pipeline.row_renderer import RenderedBatch, RenderSettings
from data_pipeline.shards import ShardAttributes
from data_pipeline.worker_pool import HopelessError, Loss, Outcome, Rejection


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
        """The shard's file."""
        return self.output / f"shard-{number}.h5"


class Executor(Protocol):
    """Whoever renders batches."""

    def run(self, batches: Iterable[Batch], on_loss: Callable[[Loss], None]) -> Iterator[Outcome[RenderedBatch]]:
        """Renders all batches and yields each as it is done, in any order; ``on_loss`` hears of lost workers."""
        ...


def open_shards(plan: Plan) -> list[PartialShard]:
    """Opens and locks every shard of the plan that is not finished.

    Raises UserError where a finished or begun shard is another data set's, or another run has it.
    """
    make_folder(plan.output)
    with ExitStack() as opened:
        shards, finished = [], []
        for number in plan.numbers:
            path, identity = plan.path(number), _identity(plan, number)
            shard = None if path.exists() else opened.enter_context(PartialShard(path, identity))
            # Asked again under the log's lock: another run may have finished it in between.
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
    )
    return shard_identity(attributes, plan.samples_per_shard, spec.width)


def render(plan: Plan, shards: list[PartialShard], executor: Executor, progress: RenderProgress) -> None:
    """Renders what the shards lack and finishes each that is complete.

    Raises UserError where rows cannot be rendered or written; everything committed by then stays, and rendering
    the same plan again goes on from there.
    """
    rejected = RejectedPatches(plan.output, plan.settings.synth.spec, plan.settings.seed)
    by_first = {shard.indices.start: shard for shard in shards}
    refused: list[Rejection] = []
    batches = _batches(plan, shards, rejected.read())
    with _noted(refused, rejected) as note, _finisher(progress) as finish:
        for shard in shards:
            if shard.complete:  # The run before ended between its last batch and this.
                finish(shard)
        for outcome in executor.run(batches, lambda loss: _tell_loss(loss, refused, progress)):
            note()
            first = outcome.batch.rows[0].index // plan.samples_per_shard * plan.samples_per_shard
            shard = by_first[first]
            shard.commit(outcome.batch, outcome.synth_name, outcome.synth_version)
            progress.update(len(outcome.batch.rows), outcome.batch.refused)
            if shard.complete:
                finish(shard)


@contextmanager
def _noted(refused: list[Rejection], rejected: RejectedPatches) -> Iterator[Callable[[], None]]:
    """Yields ``note()``, which moves what was refused to the file, for ever; the end does too.

    Unless it ends because no patch can be rendered: then the last ones, with no batch in between, are innocent.
    """

    def note() -> None:
        while refused:
            rejected.append(refused.pop(0))

    try:
        yield note
    except HopelessError:
        refused.clear()
        raise
    finally:
        note()


def _tell_loss(loss: Loss, refused: list[Rejection], progress: RenderProgress) -> None:
    progress.lost(loss)
    if loss.rejection:
        refused.append(loss.rejection)
        progress.say(f"sample {loss.rejection.index}: patch {loss.rejection.attempt} is refused, it cost three workers")


def _batches(plan: Plan, shards: list[PartialShard], rejected: frozenset[Attempt]) -> Iterator[Batch]:
    for shard in shards:
        missing = shard.missing
        for start in range(0, len(missing), plan.batch_rows):
            indices = tuple(missing[start : start + plan.batch_rows])
            yield Batch(indices, frozenset(attempt for attempt in rejected if attempt[0] in indices))


@contextmanager
def _finisher(progress: RenderProgress) -> Iterator:
    """Yields ``finish(shard)``, which works beside the rendering: writing out a large shard takes a while."""
    futures: list[Future] = []

    def finish(shard: PartialShard) -> None:
        shard.finish()
        progress.say(f"{shard.path} is complete")

    def start(shard: PartialShard) -> None:
        for future in futures:
            if future.done():
                future.result()  # A disk that is full now is full for all that follow.
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
