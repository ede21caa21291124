"""The score of a sound against a target: it ranks candidates, and refinement lowers it.

Most sounds from outside are shorter than 4 s, and two sounds are always alike in their silence. For such a target the
score is the mean of two: over the whole sound, and over the time in which the target sounds.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio.contract import SAMPLE_RATE
from data_pipeline.audio.metrics import HIGHER_IS_BETTER, METRICS, SoundFeatures

Features = type[SoundFeatures]
"""How features are computed: exactly, or fast (``CoarseFeatures``)."""

# The score is the sum of the distances, weighted so that each counts about alike. Without RMS, short sounds at wrong
# times would come first; without SOT, refinement raises it.
WEIGHTS = {"mss": 1.0, "wmfcc": 0.5, "sot": 10.0, "rms": 10.0}
# A distance over the time in which the target sounds has this at the end of its name.
SOUNDING = "_sounding"
# A sound ends TAIL_SECONDS after it last exceeds this part of its peak (-60 dB), at the earliest after MIN_SECONDS.
AUDIBLE = 1e-3
TAIL_SECONDS = 0.25
MIN_SECONDS = 0.5


def sounding_samples(audio: NDArray[np.floating]) -> int:
    """The samples from the beginning of a sound (C, T) to the end of the time in which it sounds."""
    levels = np.abs(audio).max(axis=0)
    [audible] = np.nonzero(levels > AUDIBLE * levels.max())
    end = round(TAIL_SECONDS * SAMPLE_RATE) + (int(audible[-1]) + 1 if len(audible) else 0)
    return min(max(end, round(MIN_SECONDS * SAMPLE_RATE)), audio.shape[1])


@dataclass(frozen=True, eq=False)
class Target:
    """A sound to be matched.

    Attributes:
      features: its features; those of other sounds are of the same kind.
      samples: T.
      sounding: the samples in which it sounds, if they count beside the whole; else None.
      scores: those that ``score_within`` gave, by the hash of the sound. In a search about one sound in four is equal
        to an earlier one.
    """

    features: SoundFeatures
    samples: int
    sounding: int | None
    scores: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, audio: NDArray[np.floating], *, sounding: bool, features: Features = SoundFeatures) -> Target:
        """The target of a sound (C, T). ``sounding``: the time in which it sounds counts beside the whole."""
        return cls(features(audio).computed(), audio.shape[1], sounding_samples(audio) if sounding else None)

    @property
    def _spans(self) -> tuple[int | None, ...]:
        """The times that count, as numbers of samples from the beginning; None is the whole sound."""
        return (None,) if self.sounding in (None, self.samples) else (None, self.sounding)

    def distances(self, audio: NDArray[np.floating]) -> dict[str, float]:
        """The audio metrics of a sound (C, T) by name; also over the time in which the target sounds, if it counts."""
        heard = type(self.features)(audio)
        spans = [self.features.compare(heard, samples) for samples in self._spans]
        if self.sounding is None:
            return spans[0]
        return spans[0] | {name + SOUNDING: value for name, value in spans[-1].items()}

    def score_within(self, audio: NDArray[np.floating], limit: float) -> float:
        """The score of a sound (C, T). Beyond ``limit``, any number between the limit and the score.

        What is fast to compute comes first, and the rest is left out once the sum exceeds the limit.
        """
        sound = hash(audio.tobytes())
        if sound in self.scores:
            return self.scores[sound]
        total = self._sum_within(type(self.features)(audio), limit)
        if total <= limit:
            self.scores[sound] = total
        return total

    def _sum_within(self, heard: SoundFeatures, limit: float) -> float:
        total = 0.0
        for parts in zip(*(self.features.parts(heard, samples) for samples in self._spans), strict=True):
            total += sum(_weighted(name, part) for name, part in parts) / len(self._spans)
            if total > limit:
                break
        return total


@contextmanager
def stored(target: Target) -> Iterator[str]:
    """The path of a file with a target, while the context lasts: render workers read it once, not for every sound."""
    with TemporaryDirectory(prefix="synthjax-") as folder:
        path = Path(folder) / "target"
        path.write_bytes(pickle.dumps(target))
        yield str(path)


@lru_cache(maxsize=2)
def _read(path: str) -> Target:
    return pickle.loads(Path(path).read_bytes())


@dataclass(frozen=True)
class ScoreOf:
    """The score of a sound against a stored target, as a function of the sound alone. ``limit``: ``score_within``."""

    path: str
    limit: float = math.inf

    def __call__(self, audio: NDArray[np.floating]) -> float:
        """The score of a sound (C, T)."""
        return _read(self.path).score_within(audio, self.limit)


@dataclass(frozen=True)
class ScoredSound:
    """The score of a sound against a stored target beside the sound itself."""

    path: str

    def __call__(self, audio: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
        """The score of a sound (C, T), and the sound."""
        return _read(self.path).score_within(audio, math.inf), audio


def score(distances: Mapping[str, float]) -> float:
    """The score of a sound with these distances to the target, as ``Target.distances`` returns them.

    A metric from 0 to 1 that is better when higher counts as 1 minus its value.
    """
    whole = sum(_weighted(name, distances[name]) for name in METRICS)
    if METRICS[0] + SOUNDING not in distances:
        return whole
    return (whole + sum(_weighted(name, distances[name + SOUNDING]) for name in METRICS)) / 2


def _weighted(name: str, value: float) -> float:
    return WEIGHTS[name] * (1.0 - value if name in HIGHER_IS_BETTER else value)
