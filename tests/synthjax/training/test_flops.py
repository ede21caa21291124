"""FLOPs of programs against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from synthjax.models.kernels.attention import attend
from synthjax.models.kernels.platform import as_on_accelerators
from synthjax.training.flops import peak_flops, program_flops


def count(function, *shapes: tuple[int, ...]) -> float:  # type: ignore[no-untyped-def]
    return program_flops(jax.jit(function).trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))


def test_matrix_products() -> None:
    assert count(jnp.matmul, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (7, 3, 4), (7, 4, 5)) == 7 * 2 * 3 * 4 * 5


def test_a_gradient_costs_twice_as_much_again() -> None:
    both = jax.grad(lambda a, b: jnp.square(a @ b).sum(), argnums=(0, 1))
    assert count(both, (3, 4), (4, 5)) == 3 * 2 * 3 * 4 * 5


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups: int) -> None:
    convolve = nnx.Conv(4, 6, kernel_size=(3,), padding="VALID", feature_group_count=groups, rngs=nnx.Rngs(0))
    assert count(convolve, (2, 10, 4)) == 2 * (2 * 8 * 6) * 3 * (4 // groups)


def test_every_turn_of_a_loop_counts() -> None:
    def loop(x: jax.Array, kernels: jax.Array) -> jax.Array:
        return jax.lax.scan(jax.checkpoint(lambda x, kernel: (x @ kernel, None)), x, kernels)[0]

    assert count(loop, (2, 3), (5, 3, 3)) == 5 * 2 * 2 * 3 * 3


def test_attention_counts_as_on_accelerators() -> None:
    shape = (2, 128, 3, 8)  # Long enough for the loop that CPUs have.
    expected = 2 * 2 * (2 * 3 * 128 * 128 * 8)
    assert count(lambda x: attend(x, x, x), shape) == expected
    with as_on_accelerators():
        assert count(lambda x: attend(x, x, x), shape) == expected


@pytest.mark.parametrize(
    ("kind", "peak"), [("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12), ("TPU v5 lite", 197e12), ("cpu", None)]
)
def test_peaks_are_known_by_the_name_of_a_device(kind: str, peak: float | None) -> None:
    assert peak_flops(kind) == peak
