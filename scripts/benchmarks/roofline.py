"""The limits of the devices, and the FLOPs and bytes of a program: every time on a device is printed beside them.

Two limits are measured in each benchmark, on one device, and multiplied by the number of devices: FLOP/s of a product
of square matrices in the compute dtype, and bytes/s of reading and writing one large array. A program's FLOPs are
counted in its trace (``synthjax.training.flops``). Its bytes are those of its arguments and results, each moved once:
no program can move fewer. XLA's own count is not used: it counts the body of a loop once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from synthjax.training.flops import program_flops

REPEATS = 5
# Sizes grow until a call takes this long, so that the time to start it no longer counts.
LONG_ENOUGH_SECONDS = 0.02
MATRIX_SIZES = tuple(2**i for i in range(10, 15))
COPY_BYTES = tuple(2**i for i in range(26, 32))


@dataclass(frozen=True)
class Limits:
    """FLOP/s and bytes/s that all devices reach together."""

    device: str
    matrix_size: int
    flops: float
    bandwidth: float

    @property
    def figures(self) -> dict[str, Any]:
        """The limits as reports show them."""
        return {
            "device": self.device,
            "matmul_size": self.matrix_size,
            "matmul_gflop_per_second": self.flops / 1e9,
            "copy_gb_per_second": self.bandwidth / 1e9,
        }

    def row(self, name: str, seconds: float, samples: int, program: Program) -> dict[str, Any]:
        """Returns a row of a report, for a program that makes ``samples`` samples in ``seconds``."""
        return {
            "name": name,
            "median_ms": 1e3 * seconds,
            "samples_per_second": samples / seconds,
            "gflop": program.flop / 1e9,
            "gb_moved": program.moved / 1e9,
            "percent_of_peak": 100 * program.flop / seconds / self.flops,
            "percent_of_bandwidth": 100 * program.moved / seconds / self.bandwidth,
        }


@dataclass(frozen=True)
class Program:
    """A compiled function. ``flop`` and ``moved`` (bytes) are those of one call, on all devices together."""

    call: Callable[..., Any]
    flop: float
    moved: float
    compile_seconds: float


def measure_limits(dtype: str) -> Limits:
    """Measures the limits of the devices here; takes about a second on a CPU."""
    devices = jax.devices()
    size, product_seconds = _grown(lambda size: _product(size, dtype), MATRIX_SIZES)
    copied, copy_seconds = _grown(_copy, COPY_BYTES)
    return Limits(
        device=f"{len(devices)} x {devices[0].device_kind}",
        matrix_size=size,
        flops=len(devices) * 2.0 * size**3 / product_seconds,
        bandwidth=len(devices) * 2 * copied / copy_seconds,
    )


def _product(size: int, dtype: str) -> Callable[[], jax.Array]:
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.dtype(dtype))
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(left, right)


def _copy(size: int) -> Callable[[], jax.Array]:
    arrays = [jnp.ones(size // 4, jnp.float32)]
    # XLA might remove a plain copy. Without donation, a CPU would spend more time on new memory than on the copy.
    negate = jax.jit(jnp.negative, donate_argnums=0)

    def call() -> jax.Array:
        arrays.append(negate(arrays.pop()))
        return arrays[0]

    return call


def _grown(make: Callable[[int], Callable[[], Any]], sizes: Sequence[int]) -> tuple[int, float]:
    """Returns the first size, or the last, at which a call takes long enough, and its seconds."""
    for size in sizes:
        seconds = median_seconds(make(size))
        if seconds >= LONG_ENOUGH_SECONDS:
            break
    return size, seconds


def compile_program(function: Callable[..., Any], *arguments: Any) -> Program:
    """Compiles a function for these arguments; a jitted one keeps its placements and donations."""
    jitted = function if isinstance(function, jax.stages.Wrapped) else jax.jit(function)
    started = time.perf_counter()
    traced = jitted.trace(*arguments)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - started
    memory, devices = compiled.memory_analysis(), jax.tree.leaves(compiled.output_shardings)[0].num_devices
    moved = devices * (memory.argument_size_in_bytes + memory.output_size_in_bytes)  # XLA gives those of one device.
    return Program(compiled, program_flops(traced), float(moved), seconds)


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns the seconds of a call until its results are there."""
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def median_seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Returns the median seconds of a call, after one unmeasured call."""
    return statistics.median([seconds_of(call) for _ in range(1 + repeats)][1:])
