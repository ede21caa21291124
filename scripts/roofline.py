"""What the devices of a run can do at most, and what a program asks of them: the measure of every time on a device.

Both limits are measured in the same run: FLOP/s of a product of square matrices in the compute dtype, and bytes/s of
reading and writing one large array, on one device and taken times their number. A program's FLOPs are counted
in its trace (``synthjax.flops``). Its bytes are those of its arguments and results, each moved once, which no program
can avoid; what else passes through memory depends on how well the compiler fuses, and XLA's own count of that takes
the body of a loop once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from synthjax.flops import program_flops

REPEATS = 5
# Sizes grow until a call takes so long that starting it no longer counts, or to the last: that fits small devices.
LONG_ENOUGH_SECONDS = 0.02
MATRIX_SIZES = tuple(2**i for i in range(10, 15))
COPY_BYTES = tuple(2**i for i in range(26, 32))


@dataclass(frozen=True)
class Limits:
    """What all devices together do at most in a second."""

    device: str
    matrix_size: int
    flops: float
    bandwidth: float

    @property
    def figures(self) -> dict[str, Any]:
        """As reports tell them."""
        return {
            "device": self.device,
            "matmul_size": self.matrix_size,
            "matmul_gflop_per_second": self.flops / 1e9,
            "copy_gb_per_second": self.bandwidth / 1e9,
        }


@dataclass(frozen=True)
class Program:
    """A compiled function; ``flop`` and ``moved`` (bytes) are of one call, on all devices together."""

    call: Callable[..., Any]
    flop: float
    moved: float
    compile_seconds: float


def measure_limits(dtype: str) -> Limits:
    """Takes about a second on a CPU."""
    devices = jax.devices()
    size, product_seconds = _grown(lambda size: _product(size, dtype), MATRIX_SIZES)
    copied, copy_seconds = _grown(_copy, COPY_BYTES)
    return Limits(
        device=f"{len(devices)} x {devices[0].device_kind}",
        matrix_size=size,
        flops=len(devices) * matmul_flop(size) / product_seconds,
        bandwidth=len(devices) * 2 * copied / copy_seconds,
    )


def matmul_flop(size: int) -> float:
    """FLOPs of a product of square matrices; a multiplication and an addition are two."""
    return 2.0 * size**3


def _product(size: int, dtype: str) -> Callable[[], jax.Array]:
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(dtype))
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(left, right)


def _copy(size: int) -> Callable[[], jax.Array]:
    arrays = [jnp.ones(size // 4, jnp.float32)]
    # A plain copy might be optimised away; memory that is fresh at every call would cost a CPU more than the copying.
    negate = jax.jit(jnp.negative, donate_argnums=0)

    def call() -> jax.Array:
        arrays.append(negate(arrays.pop()))
        return arrays[0]

    return call


def _grown(make: Callable[[int], Callable[[], Any]], sizes: Sequence[int]) -> tuple[int, float]:
    """The first size, or the last, at which a call is long enough, and its seconds."""
    for size in sizes:
        seconds = median_seconds(make(size))
        if seconds >= LONG_ENOUGH_SECONDS:
            break
    return size, seconds


def compile_program(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compiles a function (a jitted one with its placements and donations) for these arguments."""
    jitted = function if isinstance(function, jax.stages.Wrapped) else jax.jit(function)
    started = time.perf_counter()
    traced = jitted.trace(*arguments)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - started
    memory, devices = compiled.memory_analysis(), jax.tree.leaves(compiled.output_shardings)[0].num_devices
    moved = devices * (memory.argument_size_in_bytes + memory.output_size_in_bytes)  # XLA tells those of one.
    return Program(compiled, program_flops(traced), float(moved), seconds)


def median_seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Of a call until its results are there, after one unmeasured call."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def device_row(name: str, seconds: float, samples: int, flop: float, moved: float, limits: Limits) -> dict[str, Any]:
    """A row of a table: ``seconds``, ``flop`` and ``moved`` bytes of one call, which makes ``samples``."""
    return {
        "name": name,
        "median_ms": 1e3 * seconds,
        "samples_per_second": samples / seconds,
        "gflop": flop / 1e9,
        "gb_moved": moved / 1e9,
        "percent_of_peak": 100 * flop / seconds / limits.flops,
        "percent_of_bandwidth": 100 * moved / seconds / limits.bandwidth,
    }
