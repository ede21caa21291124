"""The results that a layer keeps for its backward pass; the backward pass computes all others again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from synthjax.models.kernels.cudnn_attention import CUDNN_FORWARD

Remat = Literal["elementwise", "layers", "none"]
# The name of results that are kept: those of matrix products, and the few that attention and norms need. The results of
# norms, activations and modulations are cheap to compute again, and keeping them would take twice the memory.
SAVED = "saved_for_backward"


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether a primitive is cuDNN's attention: its backward pass needs more small results than the named one."""
    return primitive.name == CUDNN_FORWARD


# Which results are kept, by the setting of train.remat; the last setting takes the most memory.
POLICIES: dict[Remat, Callable[..., bool]] = {
    "layers": jax.checkpoint_policies.nothing_saveable,
    "elementwise": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.save_only_these_names(SAVED), _is_cudnn_attention
    ),
    "none": jax.checkpoint_policies.everything_saveable,
}


def saved(x: Array) -> Array:
    """Marks x to be kept for the backward pass of its layer (see ``layers.run_layers``)."""
    return checkpoint_name(x, SAVED)
