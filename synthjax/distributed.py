"""One program on one process or many (JAX's multi-controller runtime)."""

from __future__ import annotations

import jax
from absl import flags

COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, for a run of several processes.")
PROCESS_COUNT = flags.DEFINE_integer("process_count", 1, "How many processes train together.", lower_bound=1)
PROCESS_INDEX = flags.DEFINE_integer("process_index", 0, "Which of them this is.", lower_bound=0)


def initialise() -> None:
    """Joins the other processes, if the flags name any; call before anything touches a device."""
    if PROCESS_COUNT.value > 1:
        jax.distributed.initialize(COORDINATOR.value, PROCESS_COUNT.value, PROCESS_INDEX.value)


def is_main() -> bool:
    """Whether this process writes logs and speaks to the terminal."""
    return jax.process_index() == 0
