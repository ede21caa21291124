"""Settings of JAX on which figures, or whether commands run at all, depend: the same in every environment."""

from __future__ import annotations

import os
import sys

import jax

# The same seed gives the same figures only with these values. Environment variables of the same names may differ.
FIGURES = {
    "jax_enable_x64": False,
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_disable_jit": False,
}


def pin_figures() -> None:
    """Sets what figures depend on, and prints a line for each setting of the environment that it changes."""
    for name, value in FIGURES.items():
        if (found := getattr(jax.config, name)) != value:
            print(f"warning: {name.upper()}={found} is ignored: it would change the figures of a seed", file=sys.stderr)
            jax.config.update(name, value)
            os.environ.pop(name.upper(), None)  # Loader workers read the environment again.
