"""Building blocks shared by the networks.

Shapes: B batch, N tokens, D model width, H heads, K head width, F feed-forward width, L layers.

Every parameter carries the names of its axes as Flax variable metadata (``axes``); ``synthjax.sharding`` maps
them to mesh axes. Initialisation follows PyTorch's defaults, from which the paper's networks were trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.attention import attend
from synthjax.models.cudnn_attention import Kernel
from synthjax.models.platform import writes_out_layers
from synthjax.models.remat import POLICIES, Remat, saved

Axes = tuple[str | None, ...]
Module = TypeVar("Module", bound=nnx.Module)

xavier_normal = nnx.initializers.variance_scaling(1.0, "fan_avg", "normal")  # PyTorch's is not truncated
zeros = nnx.initializers.zeros_init()


def uniform_fan_in(fan_in: int) -> nnx.Initializer:
    """PyTorch's default for Linear and Conv, weight and bias: uniform in +-1/sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Any:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """The exact GELU, x Phi(x) with the normal distribution function Phi, as everywhere in the reference.

    ``jax.nn.gelu`` takes the complementary error function, which costs XLA's CPU backend three times as much.
    """
    return (x * _normal_cdf(x)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The slope Phi(x) + x phi(x) is all that a backward pass keeps."""
    (x,), (tangent,) = primals, tangents
    cdf, wide = _normal_cdf(x), x.astype(jnp.float32)
    slope = cdf + wide * jnp.exp(-0.5 * wide * wide) / math.sqrt(2.0 * math.pi)
    return (x * cdf).astype(x.dtype), slope.astype(x.dtype) * tangent


def _normal_cdf(x: Array) -> Array:
    """In float32: in bfloat16 1 + erf would lose the small values of negative x."""
    return 0.5 * (1.0 + jax.lax.erf(x.astype(jnp.float32) / math.sqrt(2.0)))


def linear(
    in_features: int,
    out_features: int,
    axes: Axes,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    kernel_init: nnx.Initializer | None = None,
    bias_init: nnx.Initializer | None = None,
) -> nnx.Linear:
    """A Linear with PyTorch's default initialisation and named kernel axes (in, out)."""
    default = uniform_fan_in(in_features)
    return nnx.Linear(
        in_features,
        out_features,
        dtype=dtype,
        kernel_init=kernel_init or default,
        bias_init=bias_init or default,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[-1:]},
        rngs=rngs,
    )


class FeedForward(nnx.Module):
    """Linear-GELU-Linear, D -> F -> D_out."""

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        kernel_init: nnx.Initializer | None = None,
        bias_init: nnx.Initializer | None = None,
    ) -> None:
        inits = {"kernel_init": kernel_init, "bias_init": bias_init}
        self.up = linear(in_features, hidden, ("embed", "mlp"), dtype=dtype, rngs=rngs, **inits)
        self.down = linear(hidden, out_features, ("mlp", "embed"), dtype=dtype, rngs=rngs, **inits)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B Dout"]:
        return saved(self.down(gelu(saved(self.up(x)))))


class Attention(nnx.Module):
    """Multi-head self-attention.

    The projections of queries, keys and values are one parameter (D, 3, H, K), so that tensor parallelism splits whole
    heads, and three products: what attention takes must lie apart, and to part one product's result costs GPUs more
    time than fusing saves.
    """

    def __init__(self, dim: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        if dim % heads:
            raise ValueError(f"model width {dim} is not a multiple of {heads} heads")
        width = dim // heads
        # PyTorch draws the packed (3D, D) matrix Xavier uniform; the fans are those of the packed matrix.
        bound = math.sqrt(6.0 / (4 * dim))
        self.qkv = nnx.Param(
            jax.random.uniform(rngs.params(), (dim, 3, heads, width), jnp.float32, -bound, bound),
            axes=("embed", None, "heads", None),
        )
        self.qkv_bias = nnx.Param(jnp.zeros((3, heads, width)), axes=(None, "heads", None))
        out_init = uniform_fan_in(dim)
        self.out = nnx.Param(out_init(rngs.params(), (heads, width, dim), jnp.float32), axes=("heads", None, "embed"))
        self.out_bias = nnx.Param(jnp.zeros((dim,)), axes=("embed",))
        self.dtype = dtype
        self.attention_kernel: Kernel = "xla"

    def __call__(self, x: Float[Array, "B N D"], first: int | None = None) -> Float[Array, "B Q D"]:
        """Of the ``first`` tokens (Q), which attend to all; None: of all."""
        x = x.astype(self.dtype)
        query, key, value = self._heads(x[:, :first], 0), self._heads(x, 1), self._heads(x, 2)
        mixed = saved(attend(query, key, value, self.attention_kernel))
        weights, bias = self.out[...].astype(self.dtype), self.out_bias[...].astype(self.dtype)
        flat = mixed.reshape(*mixed.shape[:2], x.shape[-1])
        return saved(flat @ weights.reshape(-1, x.shape[-1]) + bias)

    def _heads(self, x: Float[Array, "B N D"], part: int) -> Float[Array, "B N H K"]:
        """Queries, keys or values, as a product of matrices: to one of several axes XLA does not fuse the bias."""
        weights, bias = self.qkv[:, part].astype(self.dtype), self.qkv_bias[part].astype(self.dtype)
        heads = saved(x @ weights.reshape(x.shape[-1], -1) + bias.reshape(-1))
        return heads.reshape(*x.shape[:2], *bias.shape)


def stack_layers(make: Callable[[nnx.Rngs], Module], layers: int, rngs: nnx.Rngs) -> Module:
    """``layers`` independent copies of one module as a single module whose parameters lead with an L axis."""
    stacked = nnx.vmap(make, in_axes=(0,), out_axes=0)
    return nnx.split_rngs(splits=layers)(stacked)(rngs)


def run_layers(
    stacked: nnx.Module,
    x: Array,
    *per_layer: Array,
    remat: Remat = "elementwise",
    first: int | None = None,
    written_out: bool = False,
) -> Array:
    """Feeds x through the copies of ``stack_layers`` in turn.

    On CPUs one ``lax.scan``, whose program does not grow with depth. On accelerators its layers are written out one
    after the other: for GPUs, XLA's loop copies all that the backward pass needs into and out of arrays of all layers.
    That TPUs gain as well is not known.

    Args:
      per_layer: arrays that lead with the L axis; layer i gets their row i.
      remat: what the backward pass computes again: all but the results marked by ``saved``, whole layers, or nothing.
      first: of how many tokens the last layer's results are wanted, which it gets as ``first=``; None: of all. What
        the others would cost there is saved.
      written_out: whether there is no loop on CPUs either.
    """
    graph, parameters = nnx.split(stacked)
    rematerialised = partial(jax.checkpoint, policy=POLICIES[remat])

    def run(x: Array, inputs: Any, **options: Any) -> Array:
        layer, *rows = inputs
        return nnx.merge(graph, layer)(x, *rows, **options)

    @rematerialised
    def body(x: Array, inputs: Any) -> tuple[Array, None]:
        return run(x, inputs), None

    def loop(x: Array, inputs: Any) -> Array:
        return jax.lax.scan(body, x, inputs, unroll=written_out or writes_out_layers())[0]

    inputs = (parameters, *per_layer)
    if first is None:
        return loop(x, inputs)
    others, last = (jax.tree.map(lambda leaf, at=at: leaf[at], inputs) for at in (slice(-1), -1))
    return rematerialised(partial(run, first=first))(loop(x, others), last)
