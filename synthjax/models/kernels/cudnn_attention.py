"""NVIDIA's fused attention (cuDNN), which never writes the scores to memory, and the choice of the attention kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from data_pipeline.console.cli import UserError

# xla: the formula compiled by XLA, for all heads at once or, on CPUs, one by one.
Kernel = Literal["xla", "cudnn"]
DTYPE = "bfloat16"
# The names of cuDNN's attention in traced programs.
CUDNN_FORWARD, CUDNN_BACKWARD = "dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper"
# All GPUs that cuDNN supports take heads whose width is a multiple of 8 up to this, forwards and backwards.
LARGEST_HEAD = 128
# Numbers of queries and of keys that are tried: as in most layers, as in an encoder's last layer, and odd numbers.
TRIED_LENGTHS = ((128, 128), (8, 128), (1, 127))


def choose_kernel(setting: str, dtype: str) -> Kernel:
    """The kernel that computes attention in ``dtype``.

    Args:
      setting: ``auto``: cuDNN's in bfloat16 on NVIDIA GPUs if it works there; ``xla``.

    Raises:
      UserError: if cuDNN's fails on one of several processes, which must all run the same program.
    """
    if not _on_nvidia() or kernel_of_nvidia(setting, dtype) == "xla":
        return "xla"
    fault = fault_of_cudnn()
    if fault is None:
        return "cudnn"
    message = f"cuDNN's attention does not work here ({fault})"
    if jax.process_count() > 1:
        raise UserError(f"{message}: set --config.attention=xla")
    print(f"warning: {message}: XLA's is used, which is slower", file=sys.stderr, flush=True)
    return "xla"


def kernel_of_nvidia(setting: str, dtype: str) -> Kernel:
    """The kernel on an NVIDIA GPU where cuDNN's works."""
    return "xla" if setting == "xla" or dtype != DTYPE else "cudnn"


def fits_cudnn(query: Array) -> bool:
    """Whether cuDNN's attention takes queries (B, N, H, K) of this dtype and width."""
    width = query.shape[-1]
    return str(query.dtype) == DTYPE and width % 8 == 0 and width <= LARGEST_HEAD


def attend_by_cudnn(query: Array, key: Array, value: Array, implementation: Literal["cudnn", "xla"] = "cudnn") -> Array:
    """Attention, see ``attention.attend``. An odd number of tokens gets one more, which is masked out.

    JAX 0.10 has gradients only for even numbers. On a mesh every device gets the lengths of the global batch, which are
    all the same.
    """
    lengths = [None if x.shape[1] % 2 == 0 else jnp.full(len(x), x.shape[1], jnp.int32) for x in (query, key)]
    more_query, more_key, more_value = (
        jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value)
    )
    mixed = jax.nn.dot_product_attention(
        more_query,
        more_key,
        more_value,
        query_seq_lengths=lengths[0],
        key_value_seq_lengths=lengths[1],
        implementation=implementation,
    )
    return mixed[:, : query.shape[1]]


@cache
def fault_of_cudnn() -> str | None:
    """Why cuDNN's attention cannot be used, in one line; None if it can.

    It is tried on random numbers, with its gradients.
    """
    inputs = jax.random.normal(jax.random.key(0), (3, 2, 128, 2, 64), jnp.dtype(DTYPE))

    def results(attend: Callable[..., Array]) -> list[np.ndarray]:
        @jax.jit
        def both(*inputs: Array) -> tuple[Array, ...]:
            mixed, pull = jax.vjp(attend, *inputs)
            return mixed, *pull(mixed)

        return [
            np.asarray(array, np.float32)
            for queries, keys in TRIED_LENGTHS
            for array in both(inputs[0, :, :queries], inputs[1, :, :keys], inputs[2, :, :keys])
        ]

    try:
        ours = results(attend_by_cudnn)
    except Exception as error:  # A missing library, an old driver and an old GPU raise different errors.
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    # Results are about 0.1; NaN is not close either.
    close = [
        np.allclose(one, other, rtol=0.05, atol=0.02)
        for one, other in zip(ours, results(jax.nn.dot_product_attention), strict=True)
    ]
    return None if all(close) else "its results are wrong"


def _on_nvidia() -> bool:
    return jax.default_backend() == "gpu" and "cuda" in jax.local_devices()[0].client.platform_version
