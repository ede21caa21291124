"""The optimizer of a config's ``optim`` section."""

from __future__ import annotations

import ml_collections
import optax


def make_schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 over ``warmup_steps``, then a cosine to ``final_lr`` at step ``steps``."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.lr,
        peak_value=config.lr,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=config.final_lr,
    )


def make_optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then Adam or AdamW.

    ``weight_decay`` means what it means in PyTorch: for ``adam`` it is added to the gradient (L2), for ``adamw`` it
    is decoupled (Loshchilov, Hutter 2019).
    """
    schedule = make_schedule(config, steps)
    moments = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    if config.name == "adam":
        chain = [optax.add_decayed_weights(config.weight_decay), optax.adam(schedule, **moments)]
    else:
        chain = [optax.adamw(schedule, weight_decay=config.weight_decay, **moments)]
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), *chain)
