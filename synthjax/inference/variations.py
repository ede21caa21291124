"""Variations of a patch: others like it, by an amount from 0 to 1, that sound different from each other.

More patches are made than are wanted, and rendered. Silent and clipped ones are left out, and those whose distance from
the patch is most unlike the others'. Of the rest, those are kept that lie farthest from each other.

Shapes: W row width, N patches, E pooled numbers, T samples.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from data_pipeline.audio.contract import MAX_PEAK, MIN_LOUDNESS
from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.audio.quality import fault
from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical, Continuous, Discrete, Parameter
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import PatchRenderer
from synthjax.inference.candidates import Candidate, given
from synthjax.retrieval.embedding import pooled

# With amount 1 a value changes with this probability, by up to this part of its range. A category that is chosen
# changes with the amount as its probability.
MOST_CHANGED, LARGEST_STEP = 0.5, 0.5
# Patches that are made for each one that is wanted, and how often as many again if most of them are silent.
MADE, TRIES = 4, 5
# Of the patches made, by their distance from the original, those between these quantiles may be kept.
INNER = 0.25, 0.75


def variations(
    patch: Candidate,
    count: int,
    amount: float,
    renderer: PatchRenderer,
    *,
    seed: int = 0,
    locked: Collection[str] = (),
) -> list[Candidate]:
    """``count`` variations of a patch, rendered; their note is the patch's.

    Args:
      amount: how far they are from the patch, above 0 and at most 1.
      locked: names of parameters that are not changed.

    Raises UserError if too few of the patches that are made can be heard and sound different.
    """
    spec, rng = renderer.synth.spec, np.random.default_rng(seed)
    free = [parameter for parameter in spec.synth_params if parameter.name not in locked]
    if not free:
        raise UserError("every parameter is locked: there are no variations")
    [original] = renderer.render([(0, given(patch, spec))], measure=_sound)
    if original.measured is None:
        raise UserError(f"the patch cannot be rendered: {original.fault}")
    heard: list[Candidate] = []
    sounds: list[NDArray[np.uint8]] = []
    for _ in range(TRIES):
        made = [_changed(patch, spec, free, amount, rng) for _ in range(MADE * count)]
        asked = ((number, given(one, spec)) for number, one in enumerate(made))
        rendered = sorted(renderer.render(asked, measure=_sound), key=lambda one: one.key)
        known = {original.measured.pooled.tobytes(), *(sound.tobytes() for sound in sounds)}
        audible = []
        for one in rendered:
            if one.measured and one.measured.audible and one.measured.pooled.tobytes() not in known:
                audible.append(one)
                known.add(one.measured.pooled.tobytes())
        heard += [replace(made[one.key], audio=one.measured.audio) for one in audible]
        sounds += [one.measured.pooled for one in audible]
        if len(heard) >= 2 * count:
            break
    if len(heard) < count:
        raise UserError(f"only {len(heard)} of the patches that were tried can be heard and differ: ask for fewer")
    return [heard[number] for number in spread_out(np.stack(sounds), count, original.measured.pooled)]


def spread_out(sounds: UInt8[np.ndarray, "N E"], count: int, original: UInt8[np.ndarray, " E"]) -> list[int]:
    """The numbers of ``count`` sounds that lie far from each other, and about as far from the original as most do.

    Each is the one farthest from those chosen before (Gonzalez, "Clustering to minimize the maximum intercluster
    distance", 1985); the first is one whose distance from the original is the median.
    """
    values = sounds.astype(np.float32)
    away = np.abs(values - original.astype(np.float32)).mean(axis=1)
    order = np.argsort(away, kind="stable")
    first, last = (round(part * len(order)) for part in INNER)
    spare = max(0, count - (last - first))
    inner = order[max(0, first - spare) : last + spare]
    place = len(inner) // 2
    nearest = np.full(len(inner), np.inf)
    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(int(inner[place]))
        nearest = np.minimum(nearest, np.abs(values[inner] - values[inner[place]]).mean(axis=1))
        nearest[place] = -1.0  # No sound is chosen twice.
        place = int(nearest.argmax())
    return chosen


@dataclass(frozen=True, eq=False)
class _Sound:
    """A render (2, T), its pooled spectrogram (E,), and whether it is neither silent nor clipped."""

    audio: NDArray[np.float32]
    pooled: UInt8[np.ndarray, " E"]
    audible: bool


def _sound(audio: NDArray[np.float32]) -> _Sound:
    """Runs in a render worker."""
    return _Sound(audio, pooled(mel_spectrogram(audio)), fault(audio, MIN_LOUDNESS, MAX_PEAK) is None)


def _changed(
    patch: Candidate, spec: ParamSpec, free: list[Parameter], amount: float, rng: np.random.Generator
) -> Candidate:
    row = patch.row.clip(0.0, 1.0)
    chosen = rng.random(len(free)) < MOST_CHANGED * amount
    chosen[rng.integers(len(free))] = True
    for parameter in (one for one, changes in zip(free, chosen, strict=True) if changes):
        columns = row[spec.slices[parameter.name]]
        step = LARGEST_STEP * amount * rng.uniform(-1.0, 1.0)
        match parameter:
            case Categorical():
                if rng.random() < amount:
                    columns[:] = parameter.sample(rng.random((1, parameter.draws)))[0]
            case Discrete():
                span = parameter.max - parameter.min
                columns[:] = (np.rint(columns * span) + np.copysign(np.ceil(abs(step) * span), step)) / span
            case Continuous():
                columns += step
        np.clip(columns, 0.0, 1.0, out=columns)
    return Candidate(row, "a variation", base=patch.base)
