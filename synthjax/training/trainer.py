"""Train state, optimizer, and the jitted train step.

All random numbers of a step come from (seed, step): the host's are in the batch, the others are drawn here. A step
whose loss or gradient is not finite changes no weight, and ``bad_step`` of the state records it. Later steps then
change nothing either. So the host may look at ``bad_step`` at any later time, and never saves bad weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from synthjax.cluster import sharding
from synthjax.methods.examples import Batch, Examples, Metrics
from synthjax.methods.task import Task
from synthjax.runs.architecture import Architecture

NO_BAD_STEP = -1


class NonFinite(Exception):
    """Loss or gradient of ``step``, counted from 0, was NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state that training updates; also used for its shapes and placements.

    Attributes:
      step: () int32, the number of steps done.
      bad_step: () int32, the first step that was not finite, counted from 0, or ``NO_BAD_STEP``.
      params: pure tree of the model's parameters and of its running statistics, if it has any.
      ema: exponential moving average of ``params``.
      opt_state: the state of the optimizer.
    """

    step: Any
    bad_step: Any
    params: Any
    ema: Any
    opt_state: Any

    def trees(self) -> dict[str, Any]:
        """The three trees of a checkpoint. Each can be read alone: evaluation reads only ``params`` or ``ema``."""
        training = {"opt_state": self.opt_state, "step": self.step, "bad_step": self.bad_step}
        return {"params": self.params, "ema": self.ema, "training": training}

    @classmethod
    def from_trees(cls, trees: dict[str, Any]) -> TrainState:
        """The state of a checkpoint's trees."""
        return cls(params=trees["params"], ema=trees["ema"], **trees["training"])


@dataclass(frozen=True)
class Trainer(Architecture):
    """An architecture and the optimizer that trains it."""

    optimizer: optax.GradientTransformation
    schedule: optax.Schedule

    @classmethod
    def create(cls, config: ml_collections.ConfigDict, task: Task) -> Self:
        """See ``Architecture.create``."""
        steps = config.train.steps
        return cls(
            **vars(Architecture.create(config, task)),
            optimizer=make_optimizer(config.optim, steps),
            schedule=make_schedule(config.optim, steps),
        )

    def parameter_count(self) -> int:
        """The number of trained scalars."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.trained(nnx.to_pure_dict(self.abstract))))

    def trained(self, tree: Any) -> Any:
        """The part of a tree like ``TrainState.params`` that the optimizer updates: all but running statistics."""
        parameters, _ = nnx.split_state(self.abstract, nnx.Param, ...)
        return _selected(tree, nnx.to_pure_dict(parameters))

    def init(self) -> TrainState:
        """A fresh state from the config's seed. Call it through ``jit_init``."""
        params = self.init_params()
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            bad_step=jnp.full((), NO_BAD_STEP, jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt_state=self.optimizer.init(self.trained(params)),
        )

    def state_shardings(self, mesh: Mesh) -> TrainState:
        """The placement of every leaf of the state; moments and EMA are placed like their parameters."""
        whole = sharding.replicated(mesh)
        params = self.param_shardings(mesh)
        opt_state = jax.eval_shape(self.optimizer.init, self.trained(nnx.to_pure_dict(self.abstract)))
        moments = optax.tree.map_params(
            self.optimizer,
            lambda _, placed: placed,
            opt_state,
            self.trained(params),
            transform_non_params=lambda _: whole,
        )
        return TrainState(step=whole, bad_step=whole, params=params, ema=params, opt_state=moments)

    def train_step(self, state: TrainState, batch: Batch, stats: Any, mesh: Mesh) -> tuple[TrainState, Metrics]:
        """One update. Metrics are float32 scalars; gradient norms are those before clipping."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), state.step)
        examples = self.task.examples(batch, stats, state.step)
        # Examples that the task draws inside the step have no placement yet.
        examples = jax.lax.with_sharding_constraint(examples, sharding.batch_sharding(mesh))
        draws = self.method.draw(key, (examples.x1.shape[0], self.task.width))
        (total, (metrics, statistics)), grads = self._gradients(state, (examples, draws), mesh)
        norm = optax.tree.norm(grads)
        metrics |= {"lr": self.schedule(state.step), "grad_norm": norm} | _module_norms(grads)
        good = jnp.isfinite(total) & jnp.isfinite(norm) & (state.bad_step == NO_BAD_STEP)
        state = self._update(state, grads, statistics, good)
        return state, metrics | {"bad_step": state.bad_step}

    def _gradients(self, state: TrainState, rows: tuple[Examples, Any], mesh: Mesh) -> Any:
        """((loss, (metrics, running statistics)), gradients) of a batch, in ``train.accumulate`` parts of its rows."""

        def loss_fn(trained: Any, rows: tuple[Examples, Any]) -> tuple[Array, tuple[Metrics, Any]]:
            params = _replaced(state.params, trained)
            model = self.model(self.gathered(params, mesh))
            model.train()
            total, metrics = self.method.loss(model, *rows, state.step)
            return total, (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

        count = self.config.train.accumulate
        gradients = partial(jax.value_and_grad(loss_fn, has_aux=True), self.trained(state.params))
        if count == 1:
            return gradients(rows)
        parts = sharding.micro_batches(rows, count, mesh)

        def add(sums: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradients(part)), None

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradients, rows))
        sums, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda leaf: leaf / count, sums)

    def _update(self, state: TrainState, grads: Any, statistics: Any, good: Array) -> TrainState:
        trained = self.trained(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, trained)
        params = _replaced(_replaced(state.params, optax.apply_updates(trained, updates)), statistics)
        # The decay starts low. With the full decay, the average would stay near the initial weights for long.
        decay = jnp.minimum(self.config.optim.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)
        updated = replace(state, params=params, ema=ema, opt_state=opt_state)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, state)
        first_bad = jnp.where(good | (state.bad_step != NO_BAD_STEP), state.bad_step, state.step)
        return replace(kept, step=state.step + 1, bad_step=first_bad)


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
    """Clipping by global norm, then Adam or AdamW, for a config's ``optim`` section.

    ``weight_decay`` has PyTorch's meaning: ``adam`` adds it to the gradient (L2), in ``adamw`` it is decoupled
    (Loshchilov, Hutter 2019).
    """
    schedule = make_schedule(config, steps)
    moments = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    if config.name == "adam":
        chain = [optax.add_decayed_weights(config.weight_decay), optax.adam(schedule, **moments)]
    else:
        chain = [optax.adamw(schedule, weight_decay=config.weight_decay, **moments)]
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), *chain)


def _selected(tree: Any, like: Any) -> Any:
    """The part of ``tree`` whose branches ``like`` has."""
    if not isinstance(like, dict):
        return tree
    return {key: _selected(tree[key], part) for key, part in like.items()}


def _replaced(tree: Any, part: Any) -> Any:
    """``tree`` with the leaves of ``part``, which has some of its branches."""
    if not isinstance(tree, dict):
        return part
    return {key: _replaced(value, part[key]) if key in part else value for key, value in tree.items()}


def _module_norms(grads: dict) -> Metrics:
    """Gradient norm of every module of every network."""
    return {
        f"grad_norm/{network}.{name}": optax.tree.norm(part)
        for network, parts in grads.items()
        for name, part in parts.items()
    }


def jit_init(trainer: Trainer, shardings: TrainState) -> jax.stages.Wrapped:
    """A jitted ``() -> TrainState`` that creates every leaf on its devices."""
    return jax.jit(trainer.init, out_shardings=shardings)


def abstract_state(trainer: Trainer, shardings: TrainState) -> TrainState:
    """Shapes, dtypes and placements of the state, for lowering and for restoring checkpoints."""
    shapes = jax.eval_shape(trainer.init)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)


def jit_train_step(trainer: Trainer, mesh: Mesh, shardings: TrainState) -> jax.stages.Wrapped:
    """The jitted ``Trainer.train_step``, (state, batch, stats) -> (state, metrics); ``state`` is donated."""
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(
        partial(trainer.train_step, mesh=mesh),
        donate_argnums=0,
        in_shardings=(shardings, rows, whole),
        out_shardings=(shardings, whole),
    )
