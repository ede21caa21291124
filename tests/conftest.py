"""Fixtures that every test package shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from data_pipeline.shards.mel_stats import STATS_FILE, compute_stats, save_stats
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.splits import write_splits
from tests.helpers import REPOSITORY, make_rows, write

# Started in the background, as CI may be, all processes would ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What a shell has set for other work would change where commands run here, and what they read.
for name in [*os.environ]:
    if name.startswith("JAX_") and name not in ("JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS"):
        del os.environ[name]
for name in ("RAY_ADDRESS", "HDF5_VDS_PREFIX", "HDF5_EXT_PREFIX"):
    os.environ.pop(name, None)

# Most time of these tests goes into compiling small programs, the same ones in many processes and in every clone. They
# are kept in the user's cache, and code that runs for milliseconds is not optimised. Tests about compilation count
# traces, which neither changes.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "synthjax" / "test-programs"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Eight devices on two cores: XLA's pool has one thread a device, which are used up, and wait for each other for ever,
# when devices come to collectives of one program in different orders.
os.environ["NPROC"] = "16"

# A busy machine takes its time over an example, and what one run finds, every run finds.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def surge_xt_plugin() -> Iterator[str]:
    """The Surge XT that SURGE_XT_PLUGIN names, "" if none: for tests that ask for it, no others find any."""
    plugin = os.environ.get("SURGE_XT_PLUGIN", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SURGE_XT_PLUGIN", "/nowhere")
        yield plugin


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real shards and golden files that lies beside a checkout; without it the test skips."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data")
    return folder


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of noise: 24 training rows, 6 for validation, 10 for testing, with statistics."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "shards").mkdir()
    for number, rows in enumerate((14, 10, 6, 10)):
        write(folder / "shards" / f"shard-{number}.h5", make_rows(number, rows))
    root = folder / "splits"
    write_splits(folder / "shards", root, {"train": [0, 1], "val": [2], "test": [3]})
    save_stats(root / STATS_FILE, compute_stats(ShardReader(root / "train.h5")))
    return root
