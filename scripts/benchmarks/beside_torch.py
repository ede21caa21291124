"""Measures training and sampling beside the same model in PyTorch: python -m scripts.benchmarks.beside_torch

    python -m scripts.benchmarks.beside_torch --config.data.batch_size=16 --config.compute_dtype=float32

The parts are the train step and, of sampling without guidance, the encoder and one evaluation of the vector field.
Calls of ours and PyTorch's take turns. Both sides have the base flow (spectrogram transformer, Param2Tok, transformer
field) and train it with Adam and clipping on one batch of random numbers, on one device. PyTorch runs eagerly on CPUs
and compiled on GPUs, with its own fused attention, and below float32 by autocast. It is no requirement of the project:
pip install torch. Our step also averages the weights and takes the gradient norm of every module.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Leaves PyTorch its part of an accelerator.

import jax
import numpy as np
from absl import flags

from data_pipeline.console.cli import UserError
from scripts.benchmarks import report
from scripts.benchmarks.comparison import lacking, ratios, torch_models
from scripts.benchmarks.random_model import TIME, RandomModel, TrainStep, require_finite
from scripts.benchmarks.roofline import Program, seconds_of

# The config values that the PyTorch network covers.
WRITTEN_FOR = {
    "model.kind": "flow",
    "model.encoder.kind": "ast",
    "model.encoder.swapped_padding": False,
    "model.field.kind": "transformer",
    "model.field.projection": "param2tok",
    "optim.name": "adam",
    "train.accumulate": 1,
}


def measure(config: Any) -> report.Report:
    """Calls each part of each side once unmeasured and --steps times measured, in turns."""
    if torch_models is None:
        raise UserError("PyTorch is not installed here: pip install torch")
    if jax.device_count() > 1:
        raise UserError(f"one device is compared with one, and there are {jax.device_count()}")
    if missing := lacking(config, WRITTEN_FOR):
        raise UserError(f"the PyTorch side has only {missing}")
    model = RandomModel.create(config)
    results, task = model.report(), model.trainer.task
    theirs = TorchSide(config, task.width, task.input_shape)
    if theirs.parameters != results.setting["parameters"]:
        raise UserError(f"PyTorch has {theirs.parameters} parameters and we {results.setting['parameters']}")

    def compare(part: str, program: Program, ours: Callable[[], Any], other: Callable[[], Any]) -> None:
        sides = {"JAX": ours, "PyTorch": other}
        rounds = [{side: seconds_of(call) for side, call in sides.items()} for _ in range(1 + flags.FLAGS.steps)][1:]
        for side in sides:
            seconds = statistics.median(one[side] for one in rounds)
            results.add(model.limits.row(f"{part}, {side}", seconds, config.data.batch_size, program))
        results.setting |= ratios(rounds, part)

    for part, (program, arguments) in model.encoder_and_field().items():
        compare(part, program, partial(program.call, *arguments), theirs.sampling[part])
    step = TrainStep(model)
    compare("train step", step.program, step, theirs)
    require_finite(step.loss, theirs.loss)
    return results


class TorchSide:
    """The PyTorch network on one random batch; a call makes a training step, and returns when it is done.

    ``sampling`` holds a call of the encoder and one of the vector field, each of which returns when it is done.
    """

    def __init__(self, config: Any, width: int, spectrogram: tuple[int, ...]) -> None:
        torch = torch_models.torch
        torch_models.prepare(config.seed)
        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        field, rows = config.model.field, config.data.batch_size
        encoder = torch_models.SpectrogramEncoder(config.model.encoder, field.layers, spectrogram)
        network = torch.nn.ModuleList([encoder, torch_models.Field(field, width, config.model.encoder.dim)]).to(device)
        self._train, self.loss = torch_models.Training(config, network), np.nan
        self.parameters = self._train.parameters
        shapes = (rows, *spectrogram), (rows, width), (rows, width)
        self._batch = mel, x, _ = [torch.randn(shape, device=device) for shape in shapes]
        dtype = getattr(torch, config.compute_dtype)

        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            return function if device == "cpu" else torch.compile(function, mode="max-autotune")

        def autocast() -> Any:
            return torch.autocast(device, dtype, enabled=dtype != torch.float32)

        def loss(*batch: Any) -> Any:
            with autocast():
                return torch_models.flow_loss(network[0], network[1], config.flow, *batch)

        def run(function: Callable[..., Any], *arguments: Any) -> None:
            with torch.inference_mode(), autocast():
                function(*arguments).sum().item()  # Waits for the device.

        self._loss = compiled(loss)
        with torch.inference_mode(), autocast():
            z = encoder(mel)
        of_field = x, torch.full((rows, 1), TIME, device=device), z
        self.sampling = {
            "encoder": partial(run, compiled(network[0]), mel),
            "field": partial(run, compiled(network[1]), *of_field),
        }

    def __call__(self) -> None:
        self.loss = self._train(self._loss(*self._batch))


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 5, "Measured steps of each side.", lower_bound=1)
    report.run(measure, default_config="configs/important.py")
