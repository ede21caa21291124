"""What a model is trained on: the examples of a step, and their shapes.

Shapes: B batch, W row width, C channels, M mels, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float

from data_pipeline.param_spec import ParamSpec
from data_pipeline.stats import MelStats, standardise

# On the devices. Of spectrograms: mel_spec (B, C, M, F) dB, x1 (B, W) in [-1, 1], x0 (B, W) noise.
Batch = dict[str, Array]


class Examples(NamedTuple):
    """Sounds as the encoder takes them (B, ...), their rows on the model's scale, and the noise paired with these."""

    inputs: Float[Array, "B *S"]
    x0: Float[Array, "B W"]
    x1: Float[Array, "B W"]


class Task(Protocol):
    """Where examples come from; ``examples`` is called inside the jitted step."""

    @property
    def width(self) -> int:
        """W."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sound as the encoder takes it."""
        ...

    @property
    def column_names(self) -> Sequence[str]:
        """What pictures call the W columns."""
        ...

    def examples(self, batch: Batch, stats: Any, step: Array) -> Examples:
        """The examples of the training step number ``step``, from what the host sent for it."""
        ...

    def inputs(self, batch: Batch, stats: Any) -> Float[Array, "B *S"]:
        """The sounds of a held-out batch, which holds its rows ``x1`` or what else tells them."""
        ...


@dataclass(frozen=True)
class SpectrogramTask:
    """Spectrograms and rows that come from the host.

    Attributes:
      spec: what the columns of a row mean.
      input_shape: (C, M, F).
      min_std_db: see ``standardise``.
    """

    spec: ParamSpec
    input_shape: tuple[int, ...]
    min_std_db: float

    @property
    def width(self) -> int:
        """W."""
        return self.spec.width

    @property
    def column_names(self) -> Sequence[str]:
        """Those of the spec."""
        return self.spec.column_names

    def examples(self, batch: Batch, stats: MelStats, step: Array) -> Examples:
        """Standardises; the host has drawn and paired everything else."""
        return Examples(self.inputs(batch, stats), batch["x0"], batch["x1"])

    def inputs(self, batch: Batch, stats: MelStats) -> Float[Array, "B C M F"]:
        """Standardised spectrograms of ``batch["mel_spec"]``."""
        return standardise(batch["mel_spec"], stats, self.min_std_db)
