"""Train state and the jitted train step.

Shapes: B batch, W row width, C channels, M mels, F frames.

Everything random in a step comes from (seed, step): the noise arrives coupled in the batch, times and guidance
dropout are drawn here. A step whose loss or gradient is not finite changes nothing and marks the state, so that the
host may look for it whenever it likes: no later step is applied, and no bad state can be saved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from data_pipeline.stats import MelStats, standardise
from synthjax import flow, sharding
from synthjax.check_config import check_config
from synthjax.models import FlowModel, build_model
from synthjax.optim import make_optimizer, make_schedule

Batch = dict[str, Array]  # mel_spec (B, C, M, F) dB, x1 (B, W) in [-1, 1], x0 (B, W) noise
Metrics = dict[str, Array]
NO_BAD_STEP = -1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that training changes, or the shapes or placements of it.

    ``step`` () int32 counts the updates done, ``bad_step`` () int32 is the first non-finite one or ``NO_BAD_STEP``;
    ``params`` and ``ema`` are pure trees of the model's parameters.
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
    width: int
    spectrogram_shape: tuple[int, int, int]
    graph: nnx.GraphDef
    abstract: nnx.State
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule

    @classmethod
    def create(
        cls, config: ml_collections.ConfigDict, *, width: int, spectrogram_shape: tuple[int, int, int]
    ) -> Trainer:
        """Builds the abstract model; allocates nothing. Raises UserError for a config that cannot be."""
        check_config(config)
        model = nnx.eval_shape(lambda: _build(config, width, spectrogram_shape, jax.random.key(0)))
        graph, abstract = nnx.split(model, nnx.Param)
        return cls(
            config=ml_collections.FrozenConfigDict(config),
            width=width,
            spectrogram_shape=spectrogram_shape,
            graph=graph,
            abstract=abstract,
            optimizer=make_optimizer(config.optim, config.train.steps),
            schedule=make_schedule(config.optim, config.train.steps),
        )

    def model(self, params: Any) -> FlowModel:
        """The model holding ``params``."""
        return nnx.merge(self.graph, params)

    def parameter_count(self) -> int:
        """Scalars in the model."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.to_pure_dict(self.abstract)))

    def init(self) -> TrainState:
        """A fresh state from the config's seed (call under jit with ``state_shardings``)."""
        model = _build(self.config, self.width, self.spectrogram_shape, jax.random.key(self.config.seed))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            bad_step=jnp.full((), NO_BAD_STEP, jnp.int32),
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            opt_state=self.optimizer.init(params),
        )

    def state_shardings(self, mesh: Mesh) -> TrainState:
        """Where every leaf of the state lives; moments and EMA beside their parameters."""
        whole = sharding.replicated(mesh)
        params = sharding.parameter_shardings(self.abstract, mesh, fsdp=self.config.mesh.fsdp)
        opt_state = jax.eval_shape(self.optimizer.init, nnx.to_pure_dict(self.abstract))
        moments = optax.tree.map_params(
            self.optimizer,
            lambda _, placed: placed,
            opt_state,
            params,
            transform_non_params=lambda _: whole,
        )
        return TrainState(step=whole, bad_step=whole, params=params, ema=params, opt_state=moments)

    def train_step(self, state: TrainState, batch: Batch, stats: MelStats) -> tuple[TrainState, Metrics]:
        """One update. Metrics are float32 scalars, gradient norms before clipping."""
        config = self.config
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        draws = flow.draw(key, batch["x1"].shape[0], config.flow.guidance_dropout)

        def loss_fn(params: Any) -> tuple[Array, Metrics]:
            model = self.model(params)
            z = model.encode(standardise(batch["mel_spec"], stats, config.data.min_std_db))
            error = flow.velocity_error(model, z, batch["x0"], batch["x1"], *draws).mean()
            penalty = config.flow.projection_penalty * model.penalty()
            return error + penalty, {"loss": error, "penalty": penalty}

        (total, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        norm = optax.tree.norm(grads)
        metrics |= {"lr": self.schedule(state.step), "grad_norm": norm} | _module_norms(grads)
        good = jnp.isfinite(total) & jnp.isfinite(norm) & (state.bad_step == NO_BAD_STEP)
        state = self._update(state, grads, good)
        return state, metrics | {"bad_step": state.bad_step}

    def _update(self, state: TrainState, grads: Any, good: Array) -> TrainState:
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short memory at first: the average of a young run would else be its initial weights.
        decay = jnp.minimum(self.config.optim.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)
        updated = replace(state, params=params, ema=ema, opt_state=opt_state)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, state)
        first_bad = jnp.where(good | (state.bad_step != NO_BAD_STEP), state.bad_step, state.step)
        return replace(kept, step=state.step + 1, bad_step=first_bad)


def _build(
    config: ml_collections.ConfigDict, width: int, spectrogram_shape: tuple[int, int, int], key: jax.Array
) -> FlowModel:
    return build_model(
        config.model,
        width=width,
        spectrogram_shape=spectrogram_shape,
        dtype=config.compute_dtype,
        rngs=nnx.Rngs(params=key),
    )


def _module_norms(grads: dict) -> Metrics:
    """Gradient norm of every sub-module of encoder and field."""
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
    whole: NamedSharding = sharding.replicated(mesh)
    return jax.jit(
        trainer.train_step,
        donate_argnums=0,
        in_shardings=(shardings, sharding.batch_sharding(mesh), whole),
        out_shardings=(shardings, whole),
    )
