"""Building blocks that the networks share.

Shapes: B batch, N tokens, D model width, H heads, K head width, F feed-forward width, L layers.

Every parameter carries the names of its axes as Flax variable metadata (``axes``); ``synthjax.cluster.sharding`` maps
them to mesh axes. Initial values follow PyTorch's defaults, as those of the paper's networks do.
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

from synthjax.models.kernels.attention import attend
from synthjax.models.kernels.cudnn_attention import Kernel
from synthjax.models.kernels.platform import writes_out_layers
from synthjax.models.kernels.remat import POLICIES, Remat, saved
from synthjax.models.norms import LayerNorm

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
    """The exact GELU, x Phi(x) with the normal distribution function Phi, which the reference uses everywhere.

    ``jax.nn.gelu`` uses the complementary error function, which takes XLA's CPU backend three times as long.
    """
    return (x * _normal_cdf(x)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The derivative Phi(x) + x phi(x); the backward pass keeps nothing else."""
    (x,), (tangent,) = primals, tangents
    cdf, wide = _normal_cdf(x), x.astype(jnp.float32)
    slope = cdf + wide * jnp.exp(-0.5 * wide * wide) / math.sqrt(2.0 * math.pi)
    return (x * cdf).astype(x.dtype), slope.astype(x.dtype) * tangent


def _normal_cdf(x: Array) -> Array:
    """Phi(x), in float32: in bfloat16 1 + erf would lose its small values at negative x."""
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
    use_bias: bool = True,
) -> nnx.Linear:
    """A Linear with PyTorch's default initialisation and named kernel axes (in, out)."""
    default = uniform_fan_in(in_features)
    return nnx.Linear(
        in_features,
        out_features,
        dtype=dtype,
        kernel_init=kernel_init or default,
        bias_init=bias_init or default,
        use_bias=use_bias,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[-1:]},
        rngs=rngs,
    )


def conv(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    *,
    stride: tuple[int, ...] | int = 1,
    padding: str | tuple[tuple[int, int], ...] = "SAME",
    groups: int = 1,
    transposed: bool = False,
    out_axis: str = "mlp",
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv | nnx.ConvTranspose:
    """A convolution with PyTorch's default initialisation over the axes between batch and channels.

    Args:
      padding: as in ``jax.lax.conv_general_dilated``, or of a ``transposed`` one as in ``jax.lax.conv_transpose``.
      groups: groups of channels that are convolved separately.
      out_axis: name of the kernel's output axis.
    """
    # PyTorch takes the fan-in from the weight's second axis, which holds the outputs of a transposed convolution.
    init = uniform_fan_in((out_channels if transposed else in_channels // groups) * math.prod(kernel))
    return (nnx.ConvTranspose if transposed else partial(nnx.Conv, feature_group_count=groups))(
        in_channels,
        out_channels,
        kernel_size=kernel,
        strides=stride,
        padding=padding,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        kernel_metadata={"axes": (*(None,) * (len(kernel) + 1), out_axis)},
        bias_metadata={"axes": (out_axis,)},
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
        inits: dict[str, Any] = {"kernel_init": kernel_init, "bias_init": bias_init}
        self.up = linear(in_features, hidden, ("embed", "mlp"), dtype=dtype, rngs=rngs, **inits)
        self.down = linear(hidden, out_features, ("mlp", "embed"), dtype=dtype, rngs=rngs, **inits)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B Dout"]:
        return saved(self.down(gelu(saved(self.up(x)))))


class ResidualMLP(nnx.Module):
    """skip(x) + Linear(GELU(Linear(LN x))), D -> F -> D_out.

    The skip is the identity, or a Linear without bias where widths differ.
    """

    def __init__(self, in_features: int, hidden: int, out_features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(in_features, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(in_features, hidden, out_features, dtype=dtype, rngs=rngs)
        skip = partial(linear, in_features, out_features, ("embed", "mlp"), use_bias=False, dtype=dtype, rngs=rngs)
        self.skip = None if in_features == out_features else skip()

    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B Dout"]:
        skip = x if self.skip is None else self.skip(x)
        return skip + self.ff(self.norm(x))


class Attention(nnx.Module):
    """Multi-head self-attention.

    The projections of queries, keys and values are one parameter (D, 3, H, K), so that tensor parallelism splits whole
    heads. They are computed by three products: attention needs three separate arrays, and on GPUs splitting the result
    of one product takes more time than one product saves.
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
        """The results of the ``first`` tokens (Q), which attend to all tokens; None: of all tokens."""
        x = x.astype(self.dtype)
        query, key, value = self._heads(x[:, :first], 0), self._heads(x, 1), self._heads(x, 2)
        mixed = saved(attend(query, key, value, self.attention_kernel))
        weights, bias = self.out[...].astype(self.dtype), self.out_bias[...].astype(self.dtype)
        flat = mixed.reshape(*mixed.shape[:2], x.shape[-1])
        return saved(flat @ weights.reshape(-1, x.shape[-1]) + bias)

    def _heads(self, x: Float[Array, "B N D"], part: int) -> Float[Array, "B N H K"]:
        """Queries, keys or values, as a product of two matrices: only then does XLA fuse the bias."""
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
    """Applies the copies of ``stack_layers`` to x in turn.

    CPUs run one ``lax.scan``, whose program does not grow with depth. On accelerators the scan is fully unrolled: on
    GPUs, XLA's loop copies everything that the backward pass needs into and out of arrays over all layers. Whether
    unrolling helps TPUs has not been measured.

    Args:
      per_layer: arrays that lead with the L axis; layer i gets row i of each.
      remat: what the backward pass computes again: all but the results marked by ``saved``, whole layers, or nothing.
      first: number of tokens whose results are needed from the last layer, which gets it as ``first=`` and skips the
        other tokens; None: all tokens.
      written_out: unrolls the scan on CPUs too.
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
