"""cuDNN's attention is chosen where it can be, and traced and lowered as for a GPU; running it needs one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AxisType

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import load_spec
from data_pipeline.shards.mel_stats import MelStats
from synthjax.methods.task import SpectrogramTask
from synthjax.models.kernels import cudnn_attention
from synthjax.models.kernels.attention import attend
from synthjax.models.kernels.cudnn_attention import attend_by_cudnn, choose_kernel, fault_of_cudnn
from synthjax.models.layers import Attention
from synthjax.training.flops import program_flops
from synthjax.training.trainer import Trainer, abstract_state, jit_train_step

QKV = jax.ShapeDtypeStruct((2, 128, 8, 64), jnp.bfloat16)
CUDNN_CALL = "__cudnn$fmhaSoftmax"


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX traces and lowers for cuDNN."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_300)


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU seems to be there; what is found out about it is forgotten afterwards."""
    monkeypatch.setattr(cudnn_attention, "_on_nvidia", lambda: True)
    fault_of_cudnn.cache_clear()
    yield
    fault_of_cudnn.cache_clear()


def working(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    wide = (x.astype(jnp.float32) for x in (query, key, value))
    return jax.nn.dot_product_attention(*wide).astype(query.dtype)


def failing_where_queries_are_few(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    if query.shape != key.shape:
        raise NotImplementedError("few queries")
    return working(query, key, value)


def failing(*_: jax.Array) -> jax.Array:
    raise RuntimeError("cuDNN is\nnot detected.")


@pytest.mark.usefixtures("nvidia")
def test_cudnn_is_chosen_in_bfloat16_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn_attention, "attend_by_cudnn", working)
    assert choose_kernel("auto", "bfloat16") == "cudnn"
    assert choose_kernel("auto", "float32") == "xla"
    assert choose_kernel("xla", "bfloat16") == "xla"


def test_other_platforms_have_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn_attention, "_on_nvidia", lambda: False)
    assert choose_kernel("auto", "bfloat16") == "xla"


@pytest.mark.usefixtures("nvidia")
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (failing, "RuntimeError: cuDNN is not detected."),
        (lambda *qkv: 1.1 * working(*qkv), "its results are wrong"),
        (lambda *qkv: jnp.nan * working(*qkv), "its results are wrong"),
        (
            lambda query, key, value: (1.0 + 0.1 * (query.shape[1] % 2)) * working(query, key, value),
            "its results are wrong",
        ),
        (failing_where_queries_are_few, "NotImplementedError: few queries"),
        # Right forwards, and no gradient of the keys.
        (lambda query, key, value: working(query, jax.lax.stop_gradient(key), value), "its results are wrong"),
    ],
)
def test_one_that_does_not_work_is_told_and_not_taken(
    broken: Callable[..., jax.Array],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(cudnn_attention, "attend_by_cudnn", broken)
    assert choose_kernel("auto", "bfloat16") == "xla"
    assert capsys.readouterr().err == (
        f"warning: cuDNN's attention does not work here ({said}): XLA's is used, which is slower\n"
    )
    # Of several processes another may have found that it works.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"does not work here .*: set --config.attention=xla"):
        choose_kernel("auto", "bfloat16")


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize(
    ("shape", "dtype", "taken"),
    [
        (QKV.shape, jnp.bfloat16, True),
        (QKV.shape, jnp.float32, False),
        ((2, 5, 3, 12), jnp.bfloat16, False),
        ((2, 5, 3, 128), jnp.bfloat16, True),
        ((2, 5, 3, 136), jnp.bfloat16, False),
    ],
)
def test_heads_that_it_does_not_take_have_the_formula(shape: tuple[int, ...], dtype: Any, taken: bool) -> None:
    qkv = [jax.ShapeDtypeStruct(shape, dtype)] * 3
    traced = jax.jit(lambda *x: attend(*x, "cudnn")).trace(*qkv)
    assert (CUDNN_CALL in traced.lower(lowering_platforms=("cuda",)).as_text()) == taken


ODD = pytest.mark.parametrize(
    ("n", "m"), [(8, 521), *(pytest.param(*size, marks=pytest.mark.slow) for size in ((1, 521), (7, 6), (529, 529)))]
)


@ODD
@pytest.mark.usefixtures("cudnn")
def test_odd_numbers_of_tokens_are_lowered_with_their_gradients(n: int, m: int) -> None:
    query, key = (jax.ShapeDtypeStruct((2, length, 8, 64), jnp.bfloat16) for length in (n, m))
    gradient = jax.grad(lambda *qkv: attend(*qkv, "cudnn").astype(jnp.float32).sum(), argnums=(0, 1, 2))
    traced = jax.jit(gradient).trace(query, key, key)
    assert [leaf.shape[1] for leaf in jax.tree.leaves(traced.out_info)] == [n, m, m]
    assert CUDNN_CALL in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.slow
@ODD
def test_tokens_added_to_odd_numbers_count_for_nothing(n: int, m: int) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = [jax.random.normal(key, (2, length, 2, 8)) for key, length in zip(keys, (n, m, m), strict=True)]

    def results(attend: Callable[..., jax.Array]) -> Any:
        mixed, pull = jax.vjp(attend, *inputs)
        return mixed, pull(mixed)

    ours, expected = results(partial(attend_by_cudnn, implementation="xla")), results(jax.nn.dot_product_attention)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, expected)


@pytest.mark.usefixtures("cudnn")
def test_its_arithmetic_counts_as_that_of_the_formula() -> None:
    def loss(kernel: cudnn_attention.Kernel) -> Callable[..., jax.Array]:
        return lambda *qkv: attend(*qkv, kernel).astype(jnp.float32).sum()

    for transform in (lambda f: f, lambda f: jax.value_and_grad(f, argnums=(0, 1, 2))):
        counts = [program_flops(jax.jit(transform(loss(kernel))).trace(QKV, QKV, QKV)) for kernel in ("cudnn", "xla")]
        assert counts[0] == counts[1] > 0


@pytest.mark.usefixtures("cudnn", "nvidia")
def test_every_layer_of_a_step_has_what_was_chosen(
    tiny_config: ml_collections.ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cudnn_attention, "fault_of_cudnn", lambda: None)
    tiny_config.compute_dtype = "bfloat16"
    task = SpectrogramTask(load_spec("surge_simple"), (2, 128, 401), 1.0)
    trainer = Trainer.create(tiny_config, task)
    model = nnx.merge(trainer.graph, trainer.abstract)
    kernels = [module.attention_kernel for _, module in nnx.iter_graph(model) if isinstance(module, Attention)]
    assert kernels == ["cudnn", "cudnn"]  # Of the encoder's layers and of the field's.

    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    shardings = trainer.state_shardings(mesh)
    rows = jax.ShapeDtypeStruct((8, task.width), jnp.float32)
    mel = jax.ShapeDtypeStruct((8, *task.input_shape), jnp.float16)
    stats = MelStats(*[jax.ShapeDtypeStruct(task.input_shape, jnp.float32)] * 2)
    step = jit_train_step(trainer, mesh, shardings)
    traced = step.trace(abstract_state(trainer, shardings), {"mel_spec": mel, "x0": rows, "x1": rows}, stats)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    # Of the encoder's layers, its last one and the field's; once forwards too: the backward pass has what it needs.
    assert text.count(f"@{CUDNN_CALL}(") == text.count(f"@{CUDNN_CALL}Backward(") == 3
