"""PyTorch, where it is installed, and what benchmarks that compare with it share."""

from __future__ import annotations

import importlib
import os
import statistics
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # Read as PyTorch is loaded.
try:
    torch: Any = importlib.import_module("torch")
except ImportError:
    torch = None


def lacking(config: Any, written_for: Mapping[str, Any]) -> str | None:
    """The first KEY=VALUE that a PyTorch side is written for and the config has not; None where it has all."""
    missing = (f"{key}={value}" for key, value in written_for.items() if attrgetter(key)(config) != value)
    return next(missing, None)


def comparison(ratios: Sequence[float], part: str = "") -> dict[str, Any]:
    """Figures of a report: PyTorch's version, and its seconds over ours, from those of each round (none without it)."""
    prefix = f"{part.replace(' ', '_')}_" if part else ""
    return {
        "torch": torch.__version__ if torch else None,
        f"{prefix}torch_over_jax_seconds": statistics.median(ratios) if ratios else None,
        f"{prefix}torch_over_jax_range": f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else None,
    }
