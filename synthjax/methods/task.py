"""The tasks: where a model's inputs and true rows come from.

Shapes: B batch, W row width, C channels, M mels, F frames, K oscillators, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import ml_collections
from jaxtyping import Array, Float

from data_pipeline.params.spec import ParamSpec
from data_pipeline.shards.mel_stats import MelStats, standardise
from synthjax.k_osc.synthesis import FEATURES, SAMPLES, KOsc, batch_key, draw_rows, synthesise
from synthjax.methods.examples import Batch, Examples


class Task(Protocol):
    """A source of examples; ``examples`` is called inside the jitted step."""

    @property
    def spec(self) -> ParamSpec | None:
        """The synthesizer's parameters; None for the k-osc task."""
        ...

    @property
    def width(self) -> int:
        """W, columns of a row."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sound as the encoder takes it."""
        ...

    @property
    def column_names(self) -> Sequence[str]:
        """Names of the W columns, for pictures."""
        ...

    def examples(self, batch: Batch, stats: Any, step: Array) -> Examples:
        """The examples of training step ``step``, made from the batch that the host sent for it."""
        ...

    def inputs(self, batch: Batch, stats: Any) -> Float[Array, "B *S"]:
        """Model inputs (B, *S) of one held-out batch."""
        ...


@dataclass(frozen=True)
class SpectrogramTask:
    """Spectrograms and rows that the host reads or renders.

    Attributes:
      spec: the synthesizer's parameters.
      input_shape: (C, M, F).
      min_std_db: the smallest standard deviation, see ``standardise``.
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
        """The column names of the spec."""
        return self.spec.column_names

    def examples(self, batch: Batch, stats: MelStats, step: Array) -> Examples:
        """Standardised spectrograms; noise and rows as the host has drawn and paired them."""
        return Examples(self.inputs(batch, stats), batch["x0"], batch["x1"])

    def inputs(self, batch: Batch, stats: MelStats) -> Float[Array, "B C M F"]:
        """Standardised spectrograms of ``batch["mel_spec"]``."""
        return standardise(batch["mel_spec"], stats, self.min_std_db)


def draw(seed: int, split: str, step: int | Array, count: int, width: int) -> tuple[Array, Array]:
    """Rows and noise, (B, W) each, of batch ``step`` of a split; they depend on seed, split and step alone."""
    row_key, noise_key = jax.random.split(batch_key(seed, split, step))
    rows = draw_rows(row_key, count, width // FEATURES)
    return rows, jax.random.normal(noise_key, (count, width))


@dataclass(frozen=True)
class KOscTask:
    """Signals of k oscillators and their rows.

    Attributes:
      settings: the variant of the task.
      seed: the seed of all draws.
      batch_size: B.
    """

    settings: KOsc
    seed: int
    batch_size: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> KOscTask:
        """The task of a config's ``k_osc`` section."""
        low, high = config.k_osc.frequency_range
        settings = KOsc(config.k_osc.oscillators, config.k_osc.symmetric, (float(low), float(high)))
        return cls(settings, config.seed, config.data.batch_size)

    @property
    def spec(self) -> None:
        """None: the oscillators are no synthesizer with a spec."""
        return None

    @property
    def width(self) -> int:
        """W."""
        return self.settings.width

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(S,)."""
        return (SAMPLES,)

    @property
    def column_names(self) -> Sequence[str]:
        """Names such as ``frequency_1``, in the order of a row."""
        numbers = range(1, self.settings.oscillators + 1)
        return [f"{feature}_{i}" for feature in ("frequency", "amplitude", "waveform") for i in numbers]

    def examples(self, batch: Batch, stats: None, step: Array) -> Examples:
        """Examples drawn for the step. ``batch["order"]`` (B,) pairs noise with rows; without it they stay as drawn."""
        rows, noise = draw(self.seed, "train", step, self.batch_size, self.width)
        paired = noise[batch["order"]] if "order" in batch else noise
        return Examples(synthesise(rows, self.settings), paired, rows)

    def inputs(self, batch: Batch, stats: None) -> Float[Array, "B S"]:
        """The signals of ``batch["x1"]``."""
        return synthesise(batch["x1"], self.settings)
