"""What a run came to, in a line."""

from __future__ import annotations

import jax
import ml_collections

from data_pipeline.counted import counted
from synthjax.flops import peak_flops
from synthjax.logbook import Totals


def summary(totals: Totals, config: ml_collections.ConfigDict, starts: int) -> str:
    """Steps of this start, samples/s, MFU where the device's peak is known, data wait, and restarts of the run.

    MFU (Chowdhery et al. 2022, appendix B): the arithmetic of the step over what the devices could do in its time.
    What is computed twice to save memory is counted as the program does it.
    """
    if not totals.steps:
        return f"no step was measured; restarts {max(starts - 1, 0)}"
    seconds = totals.seconds / totals.steps
    parts = [
        f"{counted(totals.steps, 'step')} measured",
        f"{config.data.batch_size / seconds:.1f} samples/s",
        f"{seconds:.4g} s a step",
        f"data wait {100 * totals.waited / totals.seconds:.1f} %",
    ]
    peak = peak_flops(jax.devices()[0].device_kind)
    rate = totals.flops_per_step / seconds / jax.device_count()
    parts.append(f"{rate / 1e12:.3g} TFLOP/s a device" + (f" (MFU {100 * rate / peak:.1f} %)" if peak else ""))
    parts.append(f"restarts {max(starts - 1, 0)}")
    return ", ".join(parts)
