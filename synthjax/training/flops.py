"""FLOPs of a program: those of matrix products and convolutions, which are nearly all of them.

XLA's own count takes the body of a loop once, and on CPUs the layers of our models are a loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from synthjax.models.kernels.cudnn_attention import CUDNN_BACKWARD, CUDNN_FORWARD

# Dense bf16 FLOP/s of one device by a part of its device_kind; from the vendors' data sheets.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}
# Matrix products in the attention of cuDNN, without those that its backward pass computes again.
CUDNN_PRODUCTS = {CUDNN_FORWARD: 2, CUDNN_BACKWARD: 4}


def peak_flops(device_kind: str) -> float | None:
    """The peak FLOP/s of a device; None if it is not in ``PEAK_FLOPS``, as for CPUs."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


def program_flops(traced: jax.stages.Traced) -> float:
    """FLOPs of a traced function on all devices together; a multiplication and an addition count as two."""
    return _count(traced.jaxpr.jaxpr)


def _count(jaxpr: Jaxpr) -> float:
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: Any) -> float:
    if equation.primitive.name == "dot_general":
        return _dot_general(equation)
    if equation.primitive.name == "conv_general_dilated":
        return _convolution(equation)
    if equation.primitive.name in CUDNN_PRODUCTS:
        return CUDNN_PRODUCTS[equation.primitive.name] * _attention_product(equation)
    counts = [_count(inner) for inner in _inner_programs(equation.params)]
    if equation.primitive.name == "cond":  # It chooses by platform; attention on CPUs computes some parts twice.
        return min(counts)
    return sum(counts) * (equation.params["length"] if equation.primitive.name == "scan" else 1)


def _inner_programs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def _dot_general(equation: Any) -> float:
    left, right = (variable.aval.shape for variable in equation.invars)
    (_, right_contracted), (_, right_batch) = equation.params["dimension_numbers"]
    free = [size for axis, size in enumerate(right) if axis not in (*right_contracted, *right_batch)]
    return 2.0 * math.prod(left) * math.prod(free)


def _attention_product(equation: Any) -> float:
    """FLOPs of the scores of queries (B, N, H, K) with keys (B, M, H, K); the other products have as many."""
    query, key = (variable.aval.shape for variable in equation.invars[:2])
    return 2.0 * math.prod(query) * key[1]


def _convolution(equation: Any) -> float:
    """FLOPs of a convolution: each output is a sum over the kernel's window and the input channels of its group."""
    kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    output_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(output) * math.prod(kernel) / output_channels
