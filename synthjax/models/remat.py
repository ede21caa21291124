"""What a layer keeps for its backward pass, and what that computes again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from synthjax.models.cudnn_attention import CUDNN_FORWARD

Remat = Literal["elementwise", "layers", "none"]
# Results of matrix products and what little attention and norms need are kept under this name. What norms, activations
# and modulations between them yield is cheap to compute again and would take twice the memory.
SAVED = "saved_for_backward"


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Its backward pass needs more than the result that carries the name; the rest is small."""
    return primitive.name == CUDNN_FORWARD


# What is computed again, the most memory last.
POLICIES: dict[Remat, Callable[..., bool]] = {
    "layers": jax.checkpoint_policies.nothing_saveable,
    "elementwise": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(SAVED), _is_cudnn_attention
    ),
    "none": jax.checkpoint_policies.everything_saveable,
}


def saved(x: Array) -> Array:
    """x, kept for the backward pass of the layer that computes it (see ``layers.run_layers``)."""
    return checkpoint_name(x, SAVED)
