"""One program on one process or many (JAX's multi-controller runtime)."""

from __future__ import annotations

import jax
from absl import flags

from data_pipeline.cli import UserError

COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, for a run of several processes.")
PROCESS_COUNT = flags.DEFINE_integer("process_count", 1, "How many processes train together.", lower_bound=1)
PROCESS_INDEX = flags.DEFINE_integer("process_index", 0, "Which of them this is.", lower_bound=0)


def initialise() -> None:
    """Joins the other processes, if the flags name any; call before anything touches a device."""
    if PROCESS_INDEX.value >= PROCESS_COUNT.value:
        raise UserError(f"--process_index={PROCESS_INDEX.value} must be below --process_count={PROCESS_COUNT.value}")
    if PROCESS_COUNT.value > 1:
        if not COORDINATOR.value:
            raise UserError("--process_count above 1 needs --coordinator=HOST:PORT of process 0")
        jax.distributed.initialize(COORDINATOR.value, PROCESS_COUNT.value, PROCESS_INDEX.value)


def is_main() -> bool:
    """Whether this process writes logs and speaks to the terminal."""
    return jax.process_index() == 0
