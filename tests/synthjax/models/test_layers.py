"""Building blocks: attention, feed-forward, norms, stacks of layers, and how they are initialised."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from synthjax.models.encoders import EncoderBlock
from synthjax.models.kernels import attention
from synthjax.models.kernels.platform import as_on_accelerators, attends_as_on_accelerators, writes_out_layers
from synthjax.models.kernels.remat import POLICIES, Remat, saved
from synthjax.models.layers import Attention, FeedForward, gelu, linear, run_layers, stack_layers
from synthjax.models.vector_fields import FieldBlock
from synthjax.training.flops import program_flops
from tests.synthjax import numpy_networks as reference
from tests.synthjax.numpy_networks import call, filled

F32 = jnp.float32
Attend = Callable[..., jax.Array]


def qkv(batch: int, n: int, m: int, heads: int, width: int, scale: float = 1.0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    shapes = (batch, n, heads, width), (batch, m, heads, width), (batch, m, heads, width)
    return tuple((scale * rng.normal(size=shape)).astype(np.float32) for shape in shapes)


SIZES = pytest.mark.parametrize(("batch", "n", "m", "heads", "width"), [(2, 5, 5, 3, 4), (3, 4, 7, 1, 8)])


@pytest.fixture(params=[0, attention.LOOPED_SCORES], ids=["loop", "all-heads-at-once"])
def attend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Attend:
    """The function as it is for long and for short sequences, short ones in either case."""
    monkeypatch.setattr(attention, "LOOPED_SCORES", request.param)
    return lambda *qkv: attention.attend(*qkv)  # Not what jit has seen before.


@SIZES
def test_attention_is_softmax_attention(attend: Attend, batch: int, n: int, m: int, heads: int, width: int) -> None:
    inputs = qkv(batch, n, m, heads, width)
    np.testing.assert_allclose(jax.jit(attend)(*inputs), reference.softmax_attention(*inputs), rtol=1e-5, atol=1e-6)


@SIZES
def test_attention_gradients_equal_those_of_jax(
    attend: Attend, batch: int, n: int, m: int, heads: int, width: int
) -> None:
    inputs = qkv(batch, n, m, heads, width)
    weights = np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32)

    def gradients(function: Callable[..., jax.Array]) -> tuple[jax.Array, ...]:
        return jax.jit(jax.grad(lambda *x: (weights * function(*x)).sum(), argnums=(0, 1, 2)))(*inputs)

    for ours, theirs in zip(gradients(attend), gradients(jax.nn.dot_product_attention), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_attention_of_large_scores_picks_the_largest_and_stays_finite(attend: Attend) -> None:
    query, key, value = qkv(2, 5, 6, 2, 4, scale=200.0)
    out = np.asarray(jax.jit(attend)(query, key, value))
    picked = np.einsum("bnhk,bmhk->bhnm", query, key).argmax(axis=-1)
    for b, h, n in np.ndindex(*picked.shape):
        np.testing.assert_allclose(out[b, n, h], value[b, picked[b, h, n], h], rtol=1e-4)


def test_attention_in_bfloat16_is_close_and_keeps_its_dtype(attend: Attend) -> None:
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in qkv(2, 16, 16, 2, 8)]
    out = jax.jit(attend)(*inputs)
    assert out.dtype == jnp.bfloat16
    expected = reference.softmax_attention(*(np.asarray(x, np.float64) for x in inputs))
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=0.02)


def test_attention_scores_are_float32_under_bfloat16(attend: Attend) -> None:
    # Scores 257 and 256, which bfloat16 cannot tell apart; the values pick the weight of the first.
    query, key = np.array([2.0, 2.0, 0.0, 0.0]), np.array([[256.0, 1.0, 0.0, 0.0], [256.0, 0.0, 0.0, 0.0]])
    value = np.array([[1.0] * 4, [0.0] * 4])
    inputs = (jnp.asarray(x.reshape(1, -1, 1, 4), jnp.bfloat16) for x in (query, key, value))
    np.testing.assert_allclose(np.float64(jax.jit(attend)(*inputs)), 1 / (1 + np.exp(-1)), rtol=1 / 128)


def test_attention_weights_in_bfloat16_sum_to_one_over_many_keys(attend: Attend) -> None:
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in qkv(1, 4, 3000, 1, 8))
    out = jax.jit(attend)(query, key, np.ones(value.shape, value.dtype))
    np.testing.assert_allclose(np.asarray(out, np.float64), 1.0, atol=1 / 128)


def test_attention_loops_over_heads_only_on_cpus_and_for_long_sequences() -> None:
    for length, looped in ((128, True), (127, False)):
        traced = jax.jit(attention.attend).trace(*qkv(2, length, length, 3, 4))
        assert ("stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()) == looped
        assert "stablehlo.while" not in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_multi_head_attention_equals_the_formulas() -> None:
    layer = filled(lambda: Attention(12, 3, dtype=F32, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(2).normal(size=(2, 7, 12)).astype(np.float32)
    expected = reference.self_attention(reference.parameters(layer), x)
    np.testing.assert_allclose(call(layer, x), expected, rtol=1e-4, atol=1e-4)


def test_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="10 is not a multiple of 3"):
        Attention(10, 3, dtype=F32, rngs=nnx.Rngs(0))


def test_gelu_is_exact() -> None:
    x = np.linspace(-4, 4, 101, dtype=np.float32)
    np.testing.assert_allclose(jax.jit(gelu)(x), reference.gelu(x.astype(np.float64)), rtol=1e-5, atol=1e-6)


def test_gelu_has_the_slope_of_jax_both_ways() -> None:
    x = jnp.linspace(-6.0, 6.0, 101)

    def exact(x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)

    for slope in (jax.jvp(gelu, (x,), (jnp.ones_like(x),))[1], jax.grad(lambda x: gelu(x).sum())(x)):
        np.testing.assert_allclose(slope, jax.grad(lambda x: exact(x).sum())(x), atol=1e-6)


def test_gelu_in_bfloat16_is_rounded_once() -> None:
    x = jnp.linspace(-4.0, 4.0, 101, dtype=jnp.bfloat16)
    for function in (gelu, jax.vmap(jax.grad(gelu))):
        out = jax.jit(function)(x)
        assert out.dtype == jnp.bfloat16
        expected = jax.jit(function)(x.astype(jnp.float32))
        np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))


def test_feed_forward_equals_the_formula() -> None:
    ff = filled(lambda: FeedForward(6, 10, 4, dtype=F32, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(4).normal(size=(2, 3, 6)).astype(np.float32)
    np.testing.assert_allclose(call(ff, x), reference.feed_forward(reference.parameters(ff), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_are_float32_whatever_dtype_computes(dtype: jnp.dtype) -> None:
    block = filled(lambda: FieldBlock(8, 2, 16, dtype=dtype, rngs=nnx.Rngs(0)))
    abstract = nnx.eval_shape(lambda: FieldBlock(8, 2, 16, dtype=dtype, rngs=nnx.Rngs(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(abstract))} == {jnp.dtype(jnp.float32)}
    x, c = jax.ShapeDtypeStruct((2, 3, 8), dtype), jax.ShapeDtypeStruct((2, 8), dtype)
    assert jax.eval_shape(block, x, c).dtype == dtype


def stacked_blocks(layers: int) -> FieldBlock:
    return filled(
        lambda: stack_layers(lambda rngs: FieldBlock(8, 2, 16, dtype=F32, rngs=rngs), layers, nnx.Rngs(0)), scale=0.3
    )


class Step(nnx.Module):
    """x + row * tanh(Linear x): layers that do not commute."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = linear(6, 6, (None, None), dtype=F32, rngs=rngs)

    def __call__(self, x: jax.Array, row: jax.Array) -> jax.Array:
        return x + row * saved(jnp.tanh(saved(self.linear(x))))


def python_loop(stacked: Step, x: jax.Array, rows: jax.Array) -> jax.Array:
    for i in range(len(rows)):
        hidden = x @ stacked.linear.kernel[i] + stacked.linear.bias[i]
        x = x + rows[i] * jnp.tanh(hidden)
    return x


def test_stacked_layers_equal_a_python_loop_in_value_and_gradient() -> None:
    graph, state = nnx.split(filled(lambda: stack_layers(Step, 3, nnx.Rngs(0))))
    rng = np.random.default_rng(5)
    x, rows = (np.float32(rng.normal(size=shape)) for shape in ((2, 5, 6), (3, 5, 6)))

    def value_and_gradients(run: Callable[..., jax.Array]) -> Any:
        def loss(state: nnx.State, x: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = run(nnx.merge(graph, state), x, rows)
            return jnp.sin(out).sum(), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(state, x, rows)

    looped = value_and_gradients(python_loop)
    for where in (nullcontext(), as_on_accelerators()):
        with where:
            ours = value_and_gradients(lambda *inputs: run_layers(*inputs))  # Not what jit has seen before.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, looped)


@pytest.mark.parametrize("remat", POLICIES)
@pytest.mark.parametrize("where", [nullcontext, as_on_accelerators])
@pytest.mark.parametrize("layers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_first_tokens_alone_are_those_of_all_in_value_and_gradient(
    layers: int, where: Callable[[], AbstractContextManager[None]], remat: Remat
) -> None:
    make = lambda rngs: EncoderBlock(8, 2, 16, dtype=F32, rngs=rngs)  # noqa: E731
    graph, state = nnx.split(filled(lambda: stack_layers(make, layers, nnx.Rngs(0)), scale=0.3))
    x = np.random.default_rng(6).normal(size=(2, 5, 8)).astype(np.float32)

    def traced(run: Callable[..., jax.Array]) -> jax.stages.Traced:
        def loss(state: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = run(nnx.merge(graph, state), x)
            return jnp.sin(out).sum(), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).trace(state, x)

    with where():
        ours = traced(partial(run_layers, first=2, remat=remat))
        sliced = traced(lambda *inputs: run_layers(*inputs, remat=remat)[:, :2])
    results = [program.lower().compile()(state, x) for program in (ours, sliced)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)
    assert program_flops(ours) < program_flops(sliced)


def gradient_program(layers: int) -> str:
    graph, state = nnx.split(stacked_blocks(layers))
    gradient = jax.grad(lambda state, x, rows: run_layers(nnx.merge(graph, state), x, rows).sum())
    return jax.jit(gradient).lower(state, np.ones((2, 5, 8)), np.ones((layers, 2, 8))).as_text()


def test_compiled_size_does_not_grow_with_depth_on_cpus() -> None:
    assert len(gradient_program(6)) == pytest.approx(len(gradient_program(2)), rel=0.02)


def test_layers_are_no_loop_on_accelerators() -> None:
    assert "stablehlo.while" in gradient_program(3)
    with as_on_accelerators():
        assert "stablehlo.while" not in gradient_program(3)


def test_what_pretends_to_be_an_accelerator_ends_as_it_began() -> None:
    with as_on_accelerators(layers=False):
        with as_on_accelerators():
            assert attends_as_on_accelerators()
            assert writes_out_layers()
        assert attends_as_on_accelerators()
        assert not writes_out_layers()
    assert not attends_as_on_accelerators()


def assert_uniform(values: Any, bound: float) -> None:
    """Fills [-bound, bound] and no more, with a uniform draw's mean and deviation within four standard errors."""
    flat = np.asarray(values).ravel() / bound
    assert np.abs(flat).max() <= 1
    assert np.abs(flat).max() > 1 - 10 / flat.size
    assert abs(flat.mean()) < 4 * math.sqrt(1 / 3 / flat.size)
    assert abs(np.square(flat).mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / flat.size)


@pytest.fixture(scope="module")
def fresh_blocks() -> FieldBlock:
    """Two field blocks of width 64, 4 heads and feed-forward width 192, as training starts from them."""
    make = lambda rngs: FieldBlock(64, 4, 192, dtype=F32, rngs=rngs)  # noqa: E731
    return nnx.jit(lambda: stack_layers(make, 2, nnx.Rngs(0)))()


def test_linear_starts_uniform_as_in_pytorch() -> None:
    layer = nnx.jit(lambda: linear(64, 200, ("embed", "mlp"), dtype=F32, rngs=nnx.Rngs(0)))()
    assert_uniform(layer.kernel[...], 1 / math.sqrt(64))
    assert_uniform(layer.bias[...], 1 / math.sqrt(64))


def test_every_stacked_layer_has_its_own_start(fresh_blocks: FieldBlock) -> None:
    for parameter in (fresh_blocks.modulation.kernel, fresh_blocks.attention.qkv, fresh_blocks.ff.up.kernel):
        first, second = np.asarray(parameter[...])
        assert (first != second).mean() > 0.99


@pytest.mark.parametrize("i", [0, 1])
def test_packed_qkv_starts_xavier_uniform_with_zero_bias(fresh_blocks: FieldBlock, i: int) -> None:
    attention = fresh_blocks.attention
    assert attention.qkv.shape == (2, 64, 3, 4, 16)
    assert_uniform(attention.qkv[i], math.sqrt(6 / (64 + 3 * 64)))
    assert not np.asarray(attention.qkv_bias[...]).any()


@pytest.mark.parametrize("i", [0, 1])
def test_attention_output_starts_as_a_linear_with_zero_bias(fresh_blocks: FieldBlock, i: int) -> None:
    assert_uniform(fresh_blocks.attention.out[i], 1 / math.sqrt(64))
    assert not np.asarray(fresh_blocks.attention.out_bias[...]).any()


@pytest.mark.parametrize("i", [0, 1])
def test_modulation_starts_as_a_linear_and_not_at_zero(fresh_blocks: FieldBlock, i: int) -> None:
    assert_uniform(fresh_blocks.modulation.kernel[i], 1 / math.sqrt(64))
    assert_uniform(fresh_blocks.modulation.bias[i], 1 / math.sqrt(64))


@pytest.mark.parametrize("name", ["up", "down"])
def test_field_feed_forward_starts_xavier_normal_with_zero_bias(fresh_blocks: FieldBlock, name: str) -> None:
    layer = getattr(fresh_blocks.ff, name)
    for kernel in np.asarray(layer.kernel[...]):
        assert kernel.std() == pytest.approx(math.sqrt(2 / (64 + 192)), rel=0.03)
    assert not np.asarray(layer.bias[...]).any()


def test_field_feed_forward_starts_from_a_whole_normal_not_a_truncated_one(fresh_blocks: FieldBlock) -> None:
    kernel = np.asarray(fresh_blocks.ff.up.kernel[...])
    beyond_three_deviations = np.mean(np.abs(kernel) > 3 * math.sqrt(2 / (64 + 192)))
    assert beyond_three_deviations == pytest.approx(0.0027, abs=0.0015)
