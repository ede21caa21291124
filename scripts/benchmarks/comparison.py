"""What the benchmarks beside PyTorch share: whether it is installed, what its networks cover, and the ratios."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

try:
    from scripts.benchmarks import torch_models
except ImportError:  # PyTorch is not installed.
    torch_models = None  # type: ignore[assignment]


def lacking(config: Any, written_for: Mapping[str, Any]) -> str | None:
    """Returns the first KEY=VALUE of ``written_for`` that the config does not have; None if it has all."""
    missing = (f"{key}={value}" for key, value in written_for.items() if attrgetter(key)(config) != value)
    return next(missing, None)


def ratios(rounds: Sequence[Mapping[str, float]], part: str = "") -> dict[str, Any]:
    """Returns PyTorch's version, and its seconds over ours in the rounds, for a report; None without PyTorch."""
    prefix = f"{part.replace(' ', '_')}_" if part else ""
    quotients = [one["PyTorch"] / one["JAX"] for one in rounds if "PyTorch" in one]
    return {
        "torch": torch_models.torch.__version__ if torch_models else None,
        f"{prefix}torch_over_jax_seconds": statistics.median(quotients) if quotients else None,
        f"{prefix}torch_over_jax_range": f"{min(quotients):.2f} to {max(quotients):.2f}" if quotients else None,
    }
