"""JAX's cache of compiled programs on disk: a command compiles only programs that no earlier command compiled."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax


def enable() -> None:
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
