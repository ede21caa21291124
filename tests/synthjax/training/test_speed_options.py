"""Options for speed and memory change no result: loss curves over 200 steps in bfloat16."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags

from synthjax.configs import important
from synthjax.models.kernels.platform import as_on_accelerators
from synthjax.tasks.batches import prefetch
from synthjax.training.setup import set_up
from synthjax.training.trainer import jit_init, jit_train_step
from tests.helpers import TINY

STEPS = 200
# All off: from disk, by a thread of this process, nothing computed again, all as accelerators have it.
PLAIN: dict[str, Any] = {"data.cache": "none", "data.workers": 0, "train.remat": "none"}
# Ten times the base config's rate; with the paper's initial noise a model of this size would hardly move so soon.
LEARNS = {"optim.lr": 1e-3, "model.field.init_noise": 0.1}
# Of losses. Rounding differs between implementations; at three times this rate it would grow to twice as much.
TOLERANCE = 1e-3
BFLOAT16 = {"compute_dtype": "bfloat16", "train.steps": STEPS}


def losses(root: Path, changes: dict[str, Any], *, as_on_cpus: bool = False) -> np.ndarray:
    """Of every step of a training run, driven as ``synthjax.train`` drives it."""
    flags.FLAGS.mark_as_parsed()
    config = important.get_config()
    config.update_from_flattened_dict(TINY | PLAIN | LEARNS | BFLOAT16 | changes)
    config.data.root = str(root)
    run = set_up(config)
    to_batch, state = run.data.load(run.mesh), jit_init(run.trainer, run.shardings)()
    step = jit_train_step(run.trainer, run.mesh, run.shardings)
    found = []
    with (
        nullcontext() if as_on_cpus else as_on_accelerators(),
        prefetch(run.batches, workers=run.data.workers) as stream,
    ):
        for host_batch in stream:
            state, metrics = step(state, to_batch(host_batch), run.stats)
            found.append(float(metrics["loss"]))
    return np.array(found)


@pytest.fixture(scope="module")
def plain(tiny_root: Path) -> np.ndarray:
    curve = losses(tiny_root, {})
    assert len(curve) == STEPS
    return curve


@pytest.mark.slow
def test_the_curve_shows_updates_that_are_off_by_a_few_percent(tiny_root: Path, plain: np.ndarray) -> None:
    other = losses(tiny_root, {"optim.lr": 0.97 * LEARNS["optim.lr"]})
    assert np.abs(other - plain).max() > TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data.cache": "host"},
        {"data.cache": "device"},
        {"data.workers": 2},
        {"train.remat": "elementwise"},
        {"train.remat": "layers"},
        {"data.cache": "device", "train.remat": "elementwise", "mesh.fsdp": True},
    ],
)
def test_an_option_leaves_the_curve_as_it_is(tiny_root: Path, plain: np.ndarray, changes: dict[str, Any]) -> None:
    np.testing.assert_allclose(losses(tiny_root, changes), plain, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_attention_and_loops_of_cpus_leave_the_curve_as_it_is(tiny_root: Path, plain: np.ndarray) -> None:
    np.testing.assert_allclose(losses(tiny_root, {}, as_on_cpus=True), plain, rtol=0, atol=TOLERANCE)
