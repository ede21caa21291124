"""Settings of JAX that every command makes: those that figures depend on, and the cache of compiled programs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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


def apply() -> None:
    """Makes the settings, before the command computes anything."""
    _pin_figures()
    _keep_programs()


def _pin_figures() -> None:
    """Sets what figures depend on, and prints a line for each setting of the environment that it changes."""
    for name, value in FIGURES.items():
        if (found := getattr(jax.config, name)) != value:
            print(f"warning: {name.upper()}={found} is ignored: it would change the figures of a seed", file=sys.stderr)
            jax.config.update(name, value)
            os.environ.pop(name.upper(), None)  # Loader workers read the environment again.


def _keep_programs() -> None:
    """Keeps compiled programs in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR names another folder; an empty value turns the cache off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if folder.startswith("~"):  # A container's user may have no HOME and no entry in /etc/passwd.
            print(
                "warning: compiled programs are not kept, as this user has no home folder: set HOME, or "
                "JAX_COMPILATION_CACHE_DIR to a folder",
                file=sys.stderr,
            )
        else:
            jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "synthjax" / "programs"))
    # cuDNN attention on several devices puts a memory address into the program, which differs at every start. The cache
    # key may leave it out: the shapes in the program determine what it points to.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
