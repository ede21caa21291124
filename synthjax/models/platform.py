"""What of a model is computed another way on accelerators than on CPUs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import jax

_attention_pretends = _layers_pretend = False


def attends_as_on_accelerators() -> bool:
    """Whether what is traced now has the attention of accelerators (see ``attention.attend``)."""
    return _attention_pretends or jax.default_backend() != "cpu"


def writes_out_layers() -> bool:
    """Whether what is traced now has its layers one after the other, not in a loop (see ``layers.run_layers``)."""
    return _layers_pretend or jax.default_backend() != "cpu"


@contextmanager
def as_on_accelerators(layers: bool = True) -> Generator[None, None, None]:
    """Traces inside are those of accelerators on CPUs as well, to learn what a program needs there.

    What jit has traced before stays as it is.

    Args:
      layers: whether layers are too; XLA's CPU compiler then keeps what it is told to compute again, in three times
        the memory.
    """
    global _attention_pretends, _layers_pretend
    before = _attention_pretends, _layers_pretend
    _attention_pretends, _layers_pretend = True, layers
    try:
        yield
    finally:
        _attention_pretends, _layers_pretend = before
