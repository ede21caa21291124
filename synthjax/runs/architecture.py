"""Network, method and task of a config, for use inside jitted functions: no weights and no optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from data_pipeline.console.cli import UserError
from synthjax.cluster import sharding
from synthjax.methods.method import Method, make_method
from synthjax.methods.task import Task
from synthjax.models import build_model
from synthjax.models.kernels.cudnn_attention import Kernel, choose_kernel
from synthjax.runs.check_config import check_config


@dataclass(frozen=True)
class Architecture:
    """The structure of a config's model, with its method and task.

    Attributes:
      graph: the model without its arrays.
      abstract: shapes and dtypes of its arrays.
      attention_kernel: the kernel that computes attention.
    """

    config: ml_collections.FrozenConfigDict
    task: Task
    method: Method
    graph: nnx.GraphDef
    abstract: nnx.State
    attention_kernel: Kernel

    @staticmethod
    def create(config: ml_collections.ConfigDict, task: Task) -> Architecture:
        """Builds the abstract model, without arrays, and chooses the kernel of attention (cuDNN's is tried once).

        Raises:
          UserError: for a config from which no model can be built.
        """
        check_config(config)
        model = nnx.eval_shape(lambda: _build(config, task, jax.random.key(0)))
        kernel = choose_kernel(config.attention, config.compute_dtype)
        model.set_attributes(attention_kernel=kernel, raise_if_not_found=False)
        graph, abstract = nnx.split(model)
        if config.train.accumulate > 1 and jax.tree.leaves(nnx.filter_state(abstract, nnx.BatchStat)):
            raise UserError("the model has batch norm, which needs whole batches: set train.accumulate to 1")
        return Architecture(
            ml_collections.FrozenConfigDict(config), task, make_method(config, task), graph, abstract, kernel
        )

    def model(self, params: Any) -> Any:
        """The model with the arrays ``params``."""
        return nnx.merge(self.graph, params)

    def init_params(self) -> Any:
        """Fresh parameters and running statistics, drawn from the config's seed, as a pure tree."""
        return nnx.to_pure_dict(nnx.state(_build(self.config, self.task, jax.random.key(self.config.seed))))

    def abstract_params(self, mesh: Mesh) -> Any:
        """Shapes, dtypes and placements of the parameters on ``mesh``, as a pure tree."""
        shapes = nnx.to_pure_dict(self.abstract)
        placed = self.param_shardings(mesh)
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, placed)

    def param_shardings(self, mesh: Mesh) -> Any:
        """The placement of every parameter on ``mesh``."""
        return sharding.parameter_shardings(self.abstract, mesh, fsdp=self.config.mesh.fsdp)

    def gathered(self, params: Any, mesh: Mesh) -> Any:
        """``params`` without the splits of FSDP: gathers them once for a whole program, inside of it.

        Without this XLA moves activations instead, a hundred times as many bytes.
        """
        return jax.lax.with_sharding_constraint(params, sharding.parameter_shardings(self.abstract, mesh, fsdp=False))


def _build(config: ml_collections.ConfigDict, task: Task, key: jax.Array) -> nnx.Module:
    return build_model(
        config.model,
        width=task.width,
        input_shape=task.input_shape,
        dtype=config.compute_dtype,
        remat=config.train.remat,
        rngs=nnx.Rngs(params=key),
    )
