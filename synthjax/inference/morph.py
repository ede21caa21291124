"""A morph: patches between two, placed so that the steps sound alike in size.

On a straight line between two patches a few values make nearly all of the change, such as an algorithm or a ratio of
frequencies. So many patches between the two are mixed at random and rendered. Each has a share of the last, which grows
along the morph. Of these those are kept whose steps have the least sum of a high power of their size.

Shapes: W row width, N patches that are mixed, K patches kept, E pooled numbers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.console.cli import UserError
from data_pipeline.params.kinds import Categorical
from data_pipeline.params.mixture import Modules
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.synths.choice import panel_of
from synthjax.inference.candidates import Candidate, given
from synthjax.retrieval.embedding import pooled

# Patches that are mixed for each one that is kept.
MIXED = 32
# The power of the steps' sizes. With a lower one a single step has most of the change, with a higher one the morph
# takes detours (docs/results.md).
POWER = 6


def morph(first: Candidate, last: Candidate, count: int, renderer: PatchRenderer, *, seed: int = 0) -> list[Candidate]:
    """``count`` patches from the first to the last, both among them, rendered; ``count`` is at least 2.

    Raises UserError where an end, or a patch that is kept, cannot be rendered.
    """
    spec, rng = renderer.synth.spec, np.random.default_rng(seed)
    modules = Modules.of(spec, panel_of(spec))
    shares = np.sort(rng.random(MIXED * count))
    patches = [first, *(mixed(first, last, share, spec, modules, rng) for share in shares), last]
    asked = ((number, given(one, spec)) for number, one in enumerate(patches))
    rendered = sorted(renderer.render(asked, measure=_heard), key=lambda one: one.key)
    rendered = [one for one in rendered if one.measured is not None]
    if not rendered or (rendered[0].key, rendered[-1].key) != (0, len(patches) - 1):
        raise UserError("one of the two patches cannot be rendered: there is no morph")
    sounds = np.stack([one.measured for one in rendered]).astype(np.float32)
    steps = np.stack([np.abs(sounds - sound).mean(axis=1) for sound in sounds])
    kept = [patches[rendered[number].key] for number in evenly(steps, count)]
    # Rendered once more: all sounds together would take gigabytes.
    heard = sorted(
        renderer.render((number, given(one, spec)) for number, one in enumerate(kept)), key=lambda one: one.key
    )
    if lost := [one for one in heard if one.audio is None]:
        raise UserError(f"a patch of the morph cannot be rendered: {lost[0].fault}")
    return [replace(one, origin=f"a morph, {n}", audio=heard[n - 1].audio) for n, one in enumerate(kept, 1)]


def mixed(
    first: Candidate, last: Candidate, share: float, spec: ParamSpec, modules: Modules, rng: np.random.Generator
) -> Candidate:
    """A patch between two, of which a share is the last's: whole modules, single values, or the numbers in part.

    The note and the base patch change in the middle.
    """
    of_module, of_value, way = rng.random(len(modules.fitting)), rng.random(len(spec.synth_params)), rng.integers(3)
    row = (last if share >= 0.5 else first).row.astype(np.float64)
    for number, parameter in enumerate(spec.synth_params):
        columns = spec.slices[parameter.name]
        part = float(of_module[modules.of_column[columns.start]] < share)
        if way == 1:
            part = float(of_value[number] < share)
        elif way == 2 and not isinstance(parameter, Categorical):
            part = share
        row[columns] = (1.0 - part) * first.row[columns] + part * last.row[columns]
    return Candidate(row.astype(np.float32), "a morph", base=(last if share >= 0.5 else first).base)


def evenly(steps: Float[np.ndarray, "N N"], count: int) -> list[int]:
    """The numbers of K patches from the first to the last of N whose steps have the least sum of powers.

    ``steps[i, j]`` is the distance from i to a later j. Found by dynamic programming.
    """
    size = len(steps)
    later = np.triu(np.ones((size, size), bool), 1)
    cost = np.where(later, steps.astype(np.float64) ** POWER, np.inf)
    total = np.where(np.arange(size) == 0, 0.0, np.inf)
    before: list[NDArray[np.int64]] = []
    for _ in range(count - 1):
        sums = total[:, None] + cost
        before.append(sums.argmin(axis=0))
        total = sums.min(axis=0)
    chosen = [size - 1]
    for best in reversed(before):
        chosen.append(int(best[chosen[-1]]))
    return chosen[::-1]


def _heard(audio: NDArray[np.float32]) -> UInt8[np.ndarray, " E"]:
    """Runs in a render worker."""
    return pooled(mel_spectrogram(audio))
