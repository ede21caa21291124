"""Compiled programs kept on disk, so that a command compiles only what no earlier one has."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def enable() -> None:
    """Keeps compiled programs under the user's cache folder; JAX_COMPILATION_CACHE_DIR names another, "" none."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "synthjax" / "programs"))
    # Attention that cuDNN computes on several devices holds an address, other at every start. What it stands for
    # follows from the shapes beside it.
    jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
