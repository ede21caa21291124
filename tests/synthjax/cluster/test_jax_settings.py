"""Figures do not depend on JAX's settings in the environment."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.helpers import REPOSITORY

# Draws numbers here, and in a process that this one starts.
DRAWS = """
import subprocess, sys
import jax, jax.numpy as jnp, numpy as np
if sys.argv[1:] == []:
    from synthjax.cluster import jax_settings
    jax_settings.apply()
    subprocess.run([sys.executable, "-c", sys.orig_argv[-1], "worker"], check=True)
x = jax.random.normal(jax.random.key(3), (4,)) + np.float64(1) / 3
print(x.dtype, x.tolist(), jnp.arange(3).dtype, flush=True)
"""


def draws(**environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(
        [sys.executable, "-c", DRAWS], env=variables, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )


def test_settings_of_the_environment_change_no_figure_and_are_named() -> None:
    plain = draws()
    other = draws(
        JAX_ENABLE_X64="1", JAX_DEFAULT_PRNG_IMPL="rbg", JAX_RANDOM_SEED_OFFSET="7", JAX_NUMPY_DTYPE_PROMOTION="strict"
    )
    assert plain.stderr == ""
    assert len(set(plain.stdout.splitlines())) == 1
    assert other.stdout == plain.stdout
    assert other.stderr.splitlines() == [
        f"warning: {setting} is ignored: it would change the figures of a seed"
        for setting in (
            "JAX_ENABLE_X64=True", "JAX_DEFAULT_PRNG_IMPL=rbg", "JAX_RANDOM_SEED_OFFSET=7",
            "JAX_NUMPY_DTYPE_PROMOTION=strict",
        )
    ]  # fmt: skip
