"""The kinds of synthesizer parameter, and the encoding of a value of each kind as columns of a row.

Every kind has ``width``, its number of columns; ``column_names``, a name a column; and ``draws``, the number of uniform
numbers that ``sample`` takes. Columns lie in [0, 1]. A raw value is the synthesizer's own: a float for a continuous
parameter, one of ``raw_values`` for a category, a MIDI note number for pitch, seconds for note times. Decoding accepts
any real columns, such as a model's, and always returns a legal raw value. ``ParamSpec.decode`` refuses NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Shorter notes make no useful sound: decoding keeps start and end at least this far apart.
MIN_NOTE_SECONDS = 0.01
# Hosts report raw values as float32: encoding takes a value this close to a legal value as that value.
RAW_VALUE_TOLERANCE = 1e-6

# Larger than any parameter, and small enough that a float32 column separates neighbouring integers.
MAX_INTEGER = 1 << 20

Label = str | float | bool


class _OneColumn:
    """A parameter in one column of its own name."""

    name: str
    width: ClassVar[int] = 1

    @property
    def column_names(self) -> tuple[str, ...]:
        """One name a column."""
        return (self.name,)


@dataclass(frozen=True)
class Continuous(_OneColumn):
    """A real parameter on [min, max] in one column: (value - min) / (max - min).

    Sampling draws ``constant_value`` with ``constant_probability``, else uniformly from the range.
    """

    name: str
    min: float
    max: float
    constant_value: float = 0.0
    constant_probability: float = 0.0

    def __post_init__(self) -> None:
        _require(_finite(self.min, self.max, self.max - self.min) and self.min < self.max, "needs finite min < max")
        _require(0.0 <= self.constant_probability <= 1.0, "constant_probability must lie in [0, 1]")
        _require(
            self.constant_probability == 0.0 or self.min <= self.constant_value <= self.max,
            "constant_value must lie in [min, max]",
        )

    @property
    def draws(self) -> int:
        """Number of uniform numbers that ``sample`` takes."""
        return 2 if self.constant_probability else 1

    def sample(self, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Uniform numbers (N, draws) in [0, 1) to columns (N, 1)."""
        if not self.constant_probability:
            return uniforms
        constant = self.encode(self.constant_value)
        return np.where(uniforms[:, 1:] < self.constant_probability, constant, uniforms[:, :1])

    def encode(self, value: float) -> NDArray[np.float64]:
        """Raw value to columns (1,). Raises ValueError outside the range."""
        position = (float(value) - self.min) / (self.max - self.min)
        if not -RAW_VALUE_TOLERANCE <= position <= 1.0 + RAW_VALUE_TOLERANCE:
            raise ValueError(f"{self.name}: {value} is not in [{self.min}, {self.max}]")
        return _clip([position])

    def decode(self, columns: ArrayLike) -> float:
        """Columns (1,) to the raw value; the column is clipped to [0, 1]."""
        position = _clipped(columns)
        # min + position * (max - min) would miss max by a rounding error at position 1.
        value = float((1.0 - position) * self.min + position * self.max)
        return min(max(value, self.min), self.max)


@dataclass(frozen=True)
class Categorical:
    """One of several labelled raw values, one-hot. ``weights`` are relative sampling probabilities."""

    draws: ClassVar[int] = 1

    name: str
    values: tuple[Label, ...]
    raw_values: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        _require(len(self.raw_values) > 0, "has no categories")
        _require(
            len(self.values) == len(self.raw_values) == len(self.weights),
            "needs as many values as raw_values and weights",
        )
        _require(_finite(*self.raw_values), "raw_values must be finite")
        gaps = np.diff(np.sort(np.asarray(self.raw_values)))
        _require(bool(np.all(gaps > 2 * RAW_VALUE_TOLERANCE)), "raw_values must differ")
        _require(len(set(self.column_names)) == len(self.values), "values must differ")
        _require_weights(self.weights)

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.raw_values)

    @property
    def column_names(self) -> tuple[str, ...]:
        """One name a column, such as ``a_osc_1_octave=-1``."""
        return tuple(
            f"{self.name}={value:g}" if isinstance(value, float) else f"{self.name}={value}" for value in self.values
        )

    def sample(self, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Uniform numbers (N, 1) in [0, 1) to one-hot columns (N, K), drawn by weight."""
        return np.eye(self.width)[_drawn(self.weights, uniforms[:, 0])]

    def index(self, raw_value: float) -> int:
        """The category of a raw value. Raises ValueError where there is none."""
        distances = np.abs(np.asarray(self.raw_values) - float(raw_value))
        nearest = int(np.argmin(distances))
        if not distances[nearest] <= RAW_VALUE_TOLERANCE:
            raise ValueError(f"{self.name}: {raw_value} is none of {list(self.raw_values)}")
        return nearest

    def label(self, raw_value: float) -> Label:
        """The label that the synthesizer shows for a raw value. Raises ValueError as ``index`` does."""
        return self.values[self.index(raw_value)]

    def encode(self, value: float) -> NDArray[np.float64]:
        """Raw value to one-hot columns (K,). Raises ValueError for a value of no category."""
        columns = np.zeros(self.width)
        columns[self.index(value)] = 1.0
        return columns

    def decode(self, columns: ArrayLike) -> float:
        """Columns (K,) to the raw value of the largest; the first wins a tie."""
        return self.raw_values[int(np.argmax(np.asarray(columns)))]


@dataclass(frozen=True)
class Discrete(_OneColumn):
    """An integer on [min, max] in one scalar column, such as pitch as a MIDI note number.

    ``weights`` are relative sampling probabilities, one an integer; without them all integers are equally likely.
    """

    draws: ClassVar[int] = 1

    name: str
    min: int
    max: int
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _require(-MAX_INTEGER <= self.min < self.max <= MAX_INTEGER, f"needs min < max within +-{MAX_INTEGER}")
        if self.weights:
            _require(len(self.weights) == self.max - self.min + 1, "needs a weight for each integer")
            _require_weights(self.weights)

    def sample(self, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Uniform numbers (N, 1) in [0, 1) to columns (N, 1)."""
        span = self.max - self.min
        if self.weights:
            return _drawn(self.weights, uniforms) / span
        # The product of the largest number below 1 may round up to the end.
        return np.minimum(np.floor(uniforms * (span + 1)), span) / span

    def encode(self, value: int) -> NDArray[np.float64]:
        """Integer to columns (1,). Raises ValueError outside the range or between two integers."""
        if not (self.min <= value <= self.max and float(value).is_integer()):
            raise ValueError(f"{self.name}: {value} is not an integer in [{self.min}, {self.max}]")
        return np.array([(value - self.min) / (self.max - self.min)])

    def decode(self, columns: ArrayLike) -> int:
        """Columns (1,) to the nearest integer; the column is clipped to [0, 1]."""
        return self.min + round(_clipped(columns) * (self.max - self.min))


@dataclass(frozen=True)
class NoteDuration:
    """When the note starts and ends, in seconds into the sound: two columns, each divided by ``max_seconds``."""

    width: ClassVar[int] = 2
    draws: ClassVar[int] = 2
    column_names: ClassVar[tuple[str, ...]] = ("note_start", "note_end")

    name: str
    max_seconds: float

    def __post_init__(self) -> None:
        _require(
            _finite(self.max_seconds) and self.max_seconds > MIN_NOTE_SECONDS,
            f"max_seconds must exceed {MIN_NOTE_SECONDS}",
        )

    def sample(self, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Uniform numbers (N, 2) in [0, 1) to columns (N, 2): sorted, and at least 10 ms apart."""
        start, end = np.sort(uniforms, axis=1).T * self.max_seconds
        return np.stack(_keep_apart(start, end, self.max_seconds), axis=1) / self.max_seconds

    def encode(self, value: tuple[float, float]) -> NDArray[np.float64]:
        """(start, end) in seconds to columns (2,). Raises ValueError unless 0 <= start <= end <= max_seconds."""
        start, end = (float(seconds) for seconds in value)
        if not 0.0 <= start <= end <= self.max_seconds:
            raise ValueError(f"{self.name}: ({start}, {end}) is not sorted within [0, {self.max_seconds}]")
        return np.array([start, end]) / self.max_seconds

    def decode(self, columns: ArrayLike) -> tuple[float, float]:
        """Columns (2,) to (start, end) in seconds: clipped, ordered, at least 10 ms apart.

        The end moves first, then the start where the end would leave the sound.
        """
        first, last = np.sort(_clip(columns)) * self.max_seconds
        start, end = _keep_apart(first, last, self.max_seconds)
        return float(start), float(end)


Parameter = Continuous | Categorical | Discrete | NoteDuration


def _clipped(columns: ArrayLike) -> float:
    """The first of the columns, clipped to [0, 1]. NumPy takes ten times as long, and a row has hundreds."""
    return min(max(float(np.asarray(columns)[0]), 0.0), 1.0)


def _keep_apart(start: NDArray, end: NDArray, max_seconds: float) -> tuple[NDArray, NDArray]:
    """Sorted times at least 10 ms apart: the end moves first, then the start where the end would leave the sound."""
    end = np.minimum(np.maximum(end, start + MIN_NOTE_SECONDS), max_seconds)
    return np.minimum(start, end - MIN_NOTE_SECONDS), end


def _drawn(weights: tuple[float, ...], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """Uniform numbers in [0, 1) to positions in ``weights``, drawn by weight."""
    ends = np.cumsum(weights)
    # Rounding may lift the product to the end of the last position of any weight.
    last = int(np.flatnonzero(weights)[-1])
    return np.minimum(np.searchsorted(ends, uniforms * ends[-1], side="right"), last)


def _require_weights(weights: tuple[float, ...]) -> None:
    _require(
        _finite(*weights) and min(weights) >= 0.0 and 0.0 < sum(weights) < math.inf,
        "weights must be non-negative and not all zero",
    )


def _clip(columns: ArrayLike) -> NDArray[np.float64]:
    return np.clip(np.asarray(columns, np.float64), 0.0, 1.0)


def _finite(*numbers: float) -> bool:
    return all(math.isfinite(number) for number in numbers)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
