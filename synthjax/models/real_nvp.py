"""Real NVP: an invertible map of rows with a known Jacobian (Dinh, Sohl-Dickstein, Bengio 2017, sections 3.2 to 3.5).

    y_f = x_f,  y_c = s(x_f) x_c + t(x_f)                  (1)  one affine coupling: f stays fixed, c changes
    log |det dy/dx| = sum_c log s_c(x_f)                   (2)
    (t, r) = net(x_f),  s = sigmoid(r + 2) + 0.001         (3)  as in nflows, which the reference uses

The fixed columns alternate: even columns in the first coupling, odd columns in the second, and so on. Only the networks
of the couplings have batch normalisation. Its running statistics are ``nnx.BatchStat`` variables. Only a call with
``train=True`` normalises by the batch's own statistics and updates the running ones.

Shapes: B batch, W row width, E and O its even and odd columns, V and U columns that stay and that change, H hidden.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthjax.models.layers import linear, stack_layers
from synthjax.models.norms import BatchNorm

NET_NORM_EPSILON = 1e-3
MIN_SCALE = 1e-3
# Puts the initial scale at sigmoid(2) = 0.88, near the identity.
SCALE_OFFSET = 2.0
NEAR_ZERO = 1e-3


def _near_zero(key: Any, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Any:
    del out_sharding
    return jax.random.uniform(key, shape, dtype, -NEAR_ZERO, NEAR_ZERO)


class ResidualBlock(nnx.Module):
    """x + W2 ReLU(BN(W1 ReLU(BN x))), with W2 near zero at first."""

    def __init__(self, dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.norm1 = BatchNorm(dim, epsilon=NET_NORM_EPSILON, dtype=jnp.float32, rngs=rngs)
        self.linear1 = linear(dim, dim, ("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(dim, epsilon=NET_NORM_EPSILON, dtype=jnp.float32, rngs=rngs)
        self.linear2 = linear(
            dim, dim, ("mlp", "embed"), kernel_init=_near_zero, bias_init=_near_zero, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "B H"], *, train: bool) -> Float[Array, "B H"]:
        y = self.linear1(jax.nn.relu(self.norm1(x, use_running_average=not train)))
        return x + self.linear2(jax.nn.relu(self.norm2(y, use_running_average=not train)))


class AffineCoupling(nnx.Module):
    """Eq. (1) to (3); the network is Linear, ``blocks`` residual blocks of width H, Linear."""

    def __init__(self, fixed: int, changed: int, *, hidden: int, blocks: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.enter = linear(fixed, hidden, (None, "embed"), dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(ResidualBlock(hidden, dtype=dtype, rngs=rngs) for _ in range(blocks))
        self.leave = linear(hidden, 2 * changed, ("embed", None), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B U"], fixed: Float[Array, "B V"], *, train: bool
    ) -> tuple[Float[Array, "B U"], Float[Array, " B"]]:
        """The changed columns of eq. (1), and the log-determinant of eq. (2)."""
        hidden = self.enter(fixed)
        for block in self.blocks:
            hidden = block(hidden, train=train)
        shift, raw = jnp.split(self.leave(hidden).astype(jnp.float32), 2, axis=-1)
        scale = jax.nn.sigmoid(raw + SCALE_OFFSET) + MIN_SCALE
        return scale * x + shift, jnp.log(scale).sum(axis=-1)


class CouplingPair(nnx.Module):
    """Two couplings: odd columns change by the even ones, then even columns by the odd ones."""

    def __init__(self, even: int, odd: int, *, hidden: int, blocks: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        sizes = {"hidden": hidden, "blocks": blocks}
        self.change_odd = AffineCoupling(even, odd, **sizes, dtype=dtype, rngs=rngs)
        self.change_even = AffineCoupling(odd, even, **sizes, dtype=dtype, rngs=rngs)

    def __call__(
        self, even: Float[Array, "B E"], odd: Float[Array, "B O"], *, train: bool
    ) -> tuple[Float[Array, "B E"], Float[Array, "B O"], Float[Array, " B"]]:
        odd, log_det_odd = self.change_odd(odd, even, train=train)
        even, log_det_even = self.change_even(even, odd, train=train)
        return even, odd, log_det_odd + log_det_even


class RealNVP(nnx.Module):
    """``layers`` affine couplings in float32, with networks in ``dtype``. Pairs of couplings run in one ``lax.scan``.

    Args:
      width: W, at least 2.
      layers: number of couplings; even, so that every column changes equally often.
      hidden: H, width of the couplings' networks.
      blocks: number of residual blocks in each network.

    Raises:
      ValueError: for a row of one column, or an odd number of layers.
    """

    def __init__(self, width: int, *, layers: int, hidden: int, blocks: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        if width < 2:
            raise ValueError(f"a coupling needs columns that stay and columns that change, not {width}")
        if layers % 2:
            raise ValueError(f"couplings come in pairs: {layers} is odd")
        even, odd = -(-width // 2), width // 2
        self.pairs = stack_layers(
            lambda rngs: CouplingPair(even, odd, hidden=hidden, blocks=blocks, dtype=dtype, rngs=rngs),
            layers // 2,
            rngs,
        )

    def __call__(
        self, x: Float[Array, "B W"], *, train: bool = False
    ) -> tuple[Float[Array, "B W"], Float[Array, " B"]]:
        """The mapped rows, and log |det| of the Jacobian at each.

        Args:
          train: whether to normalise by this batch's statistics and update the running ones.
        """
        graph, *states = nnx.split(self.pairs, nnx.Param, nnx.BatchStat)

        def body(halves: tuple[Array, Array], layer: Any) -> tuple[tuple[Array, Array], tuple[Array, Any]]:
            pair = nnx.merge(graph, *layer)
            even, odd, log_det = pair(*halves, train=train)
            return (even, odd), (log_det, nnx.state(pair, nnx.BatchStat))

        halves, (log_dets, statistics) = jax.lax.scan(body, _halves(x), tuple(states))
        if train:
            nnx.update(self.pairs, statistics)
        return _interleave(*halves), log_dets.sum(axis=0)


def _halves(x: Float[Array, "B W"]) -> tuple[Float[Array, "B E"], Float[Array, "B O"]]:
    x = x.astype(jnp.float32)
    return x[:, 0::2], x[:, 1::2]


def _interleave(even: Float[Array, "B E"], odd: Float[Array, "B O"]) -> Float[Array, "B W"]:
    batch, width = even.shape[0], even.shape[1] + odd.shape[1]
    odd = jnp.pad(odd, ((0, 0), (0, even.shape[1] - odd.shape[1])))
    return jnp.stack([even, odd], axis=-1).reshape(batch, -1)[:, :width]
