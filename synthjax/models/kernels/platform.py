"""Whether models are traced as for accelerators or as for CPUs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import jax

_attention_pretends = _layers_pretend = False


def attends_as_on_accelerators() -> bool:
    """Whether tracing now uses the attention of accelerators (see ``attention.attend``)."""
    return _attention_pretends or jax.default_backend() != "cpu"


def writes_out_layers() -> bool:
    """Whether tracing now unrolls the loop over layers (see ``layers.run_layers``)."""
    return _layers_pretend or jax.default_backend() != "cpu"


@contextmanager
def as_on_accelerators(layers: bool = True) -> Generator[None, None, None]:
    """Inside this context, tracing on a CPU gives the programs of accelerators, to measure what they need.

    Programs that jit has traced before stay as they are.

    Args:
      layers: whether to unroll layers as well. XLA's CPU compiler then keeps the results that ``remat`` tells it to
        compute again, and takes three times the memory.
    """
    global _attention_pretends, _layers_pretend
    before = _attention_pretends, _layers_pretend
    _attention_pretends, _layers_pretend = True, layers
    try:
        yield
    finally:
        _attention_pretends, _layers_pretend = before
