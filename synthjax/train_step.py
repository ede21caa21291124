"""Train state and the jitted train step.

Everything random in a step comes from (seed, step): what the task draws on the host arrives in the batch, all else is
drawn here. A step whose loss or gradient is not finite changes nothing and marks the state, so that the
host may look for it whenever it likes: no later step is applied, and no bad state can be saved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from data_pipeline.cli import UserError
from synthjax import sharding
from synthjax.check_config import check_config
from synthjax.methods import Method, Metrics, make_method
from synthjax.models import build_model
from synthjax.models.cudnn_attention import Kernel, choose_kernel
from synthjax.optim import make_optimizer, make_schedule
from synthjax.tasks import Batch, Examples, Task

NO_BAD_STEP = -1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that training changes, or the shapes or placements of it.

    ``step`` () int32 counts the updates done, ``bad_step`` () int32 is the first non-finite one or ``NO_BAD_STEP``;
    ``params`` is the pure tree of the model's parameters and, where it has any, running statistics; ``ema`` is the
    average of all these.
    """

    step: Any
    bad_step: Any
    params: Any
    ema: Any
    opt_state: Any


@dataclass(frozen=True)
class Trainer:
    """Model structure, optimizer and config of a run: what the jitted functions close over."""

    config: ml_collections.FrozenConfigDict
    task: Task
    method: Method
    graph: nnx.GraphDef
    abstract: nnx.State
    attention_kernel: Kernel
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule

    @classmethod
    def create(cls, config: ml_collections.ConfigDict, task: Task, attention_kernel: Kernel | None = None) -> Trainer:
        """Builds the abstract model; raises UserError for a config that cannot be.

        The kernel of attention is chosen here, in every process, before anything is traced; cuDNN's is tried for it.

        Args:
          attention_kernel: the kernel, for programs of another machine than this.
        """
        check_config(config)
        model = nnx.eval_shape(lambda: _build(config, task, jax.random.key(0)))
        kernel = attention_kernel or choose_kernel(config.attention, config.compute_dtype)
        model.set_attributes(attention_kernel=kernel, raise_if_not_found=False)
        graph, abstract = nnx.split(model)
        if config.train.accumulate > 1 and jax.tree.leaves(nnx.filter_state(abstract, nnx.BatchStat)):
            raise UserError("train.accumulate above 1 would normalise every part by itself: model has batch norm")
        return cls(
            config=ml_collections.FrozenConfigDict(config),
            task=task,
            method=make_method(config, task),
            graph=graph,
            abstract=abstract,
            attention_kernel=kernel,
            optimizer=make_optimizer(config.optim, config.train.steps),
            schedule=make_schedule(config.optim, config.train.steps),
        )

    def model(self, params: Any) -> Any:
        """The model holding ``params``."""
        return nnx.merge(self.graph, params)

    def gathered(self, params: Any, mesh: Mesh) -> Any:
        """``params`` as they are computed with: what FSDP splits is brought together, once for a whole program.

        XLA would rather move the activations, a hundred times as much.
        """
        return jax.lax.with_sharding_constraint(params, sharding.parameter_shardings(self.abstract, mesh, fsdp=False))

    def parameter_count(self) -> int:
        """Scalars that are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.trained(nnx.to_pure_dict(self.abstract))))

    def trained(self, tree: Any) -> Any:
        """Of a tree like ``TrainState.params`` what the optimizer sees: running statistics have no gradient."""
        parameters, _ = nnx.split_state(self.abstract, nnx.Param, ...)
        return _selected(tree, nnx.to_pure_dict(parameters))

    def init(self) -> TrainState:
        """A fresh state from the config's seed (call under jit with ``state_shardings``)."""
        model = _build(self.config, self.task, jax.random.key(self.config.seed))
        params = nnx.to_pure_dict(nnx.state(model))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            bad_step=jnp.full((), NO_BAD_STEP, jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt_state=self.optimizer.init(self.trained(params)),
        )

    def state_shardings(self, mesh: Mesh) -> TrainState:
        """Where every leaf of the state lives; moments and EMA beside their parameters."""
        whole = sharding.replicated(mesh)
        params = sharding.parameter_shardings(self.abstract, mesh, fsdp=self.config.mesh.fsdp)
        opt_state = jax.eval_shape(self.optimizer.init, self.trained(nnx.to_pure_dict(self.abstract)))
        moments = optax.tree.map_params(
            self.optimizer,
            lambda _, placed: placed,
            opt_state,
            self.trained(params),
            transform_non_params=lambda _: whole,
        )
        return TrainState(step=whole, bad_step=whole, params=params, ema=params, opt_state=moments)

    def train_step(
        self, state: TrainState, batch: Batch, stats: Any, mesh: Mesh | None = None
    ) -> tuple[TrainState, Metrics]:
        """One update. Metrics are float32 scalars, gradient norms before clipping.

        Args:
          mesh: where the examples live; None for one device.
        """
        key = jax.random.fold_in(jax.random.key(self.config.seed), state.step)
        examples = self.task.examples(batch, stats, state.step)
        if mesh is not None:  # Some tasks draw them here.
            examples = jax.lax.with_sharding_constraint(examples, sharding.batch_sharding(mesh))
        draws = self.method.draw(key, (examples.x1.shape[0], self.task.width))
        (total, (metrics, statistics)), grads = self._gradients(state, (examples, draws), mesh)
        norm = optax.tree.norm(grads)
        metrics |= {"lr": self.schedule(state.step), "grad_norm": norm} | _module_norms(grads)
        good = jnp.isfinite(total) & jnp.isfinite(norm) & (state.bad_step == NO_BAD_STEP)
        state = self._update(state, grads, statistics, good)
        return state, metrics | {"bad_step": state.bad_step}

    def _gradients(self, state: TrainState, rows: tuple[Examples, Any], mesh: Mesh | None) -> Any:
        """((loss, (metrics, running statistics)), gradients) of a batch, in ``train.accumulate`` parts of its rows."""

        def loss_fn(trained: Any, rows: tuple[Examples, Any]) -> tuple[Array, tuple[Metrics, Any]]:
            params = _replaced(state.params, trained)
            model = self.model(params if mesh is None else self.gathered(params, mesh))
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
        # A short memory at first: the average of a young run would else be its initial weights.
        decay = jnp.minimum(self.config.optim.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)
        updated = replace(state, params=params, ema=ema, opt_state=opt_state)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, state)
        first_bad = jnp.where(good | (state.bad_step != NO_BAD_STEP), state.bad_step, state.step)
        return replace(kept, step=state.step + 1, bad_step=first_bad)


def _build(config: ml_collections.ConfigDict, task: Task, key: jax.Array) -> nnx.Module:
    return build_model(
        config.model,
        width=task.width,
        input_shape=task.input_shape,
        dtype=config.compute_dtype,
        remat=config.train.remat,
        rngs=nnx.Rngs(params=key),
    )


def _selected(tree: Any, like: Any) -> Any:
    """The leaves of ``tree`` where ``like``, a tree of some of the same branches, has leaves."""
    if not isinstance(like, dict):
        return tree
    return {key: _selected(tree[key], part) for key, part in like.items()}


def _replaced(tree: Any, part: Any) -> Any:
    """``tree`` with the leaves of ``part``, a tree of some of the same branches, in place of its own."""
    if not isinstance(tree, dict):
        return part
    return {key: _replaced(value, part[key]) if key in part else value for key, value in tree.items()}


def _module_norms(grads: dict) -> Metrics:
    """Gradient norm of every sub-module of the model's parts."""
    return {
        f"grad_norm/{network}.{name}": optax.tree.norm(part)
        for network, parts in grads.items()
        for name, part in parts.items()
    }


def jit_init(trainer: Trainer, shardings: TrainState) -> jax.stages.Wrapped:
    """A jitted ``() -> TrainState`` that makes every leaf where it lives."""
    return jax.jit(trainer.init, out_shardings=shardings)


def abstract_state(trainer: Trainer, shardings: TrainState) -> TrainState:
    """Shapes, dtypes and placements of the state, for lowering and for restoring checkpoints."""
    shapes = jax.eval_shape(trainer.init)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)


def jit_train_step(trainer: Trainer, mesh: Mesh, shardings: TrainState) -> jax.stages.Wrapped:
    """The train step with the state donated and every placement pinned."""
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(
        partial(trainer.train_step, mesh=mesh),
        donate_argnums=0,
        in_shardings=(shardings, rows, whole),
        out_shardings=(shardings, whole),
    )
