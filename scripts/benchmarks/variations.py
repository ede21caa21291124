"""Measures variations of presets, and morphs between pairs of them, by how far they sound apart (MSS in dB).

    python -m scripts.benchmarks.variations --presets=FOLDER --spec=dexed

Variations: the median distance of 8 from their preset and between them, by amount, over the first --count presets that
can be heard. Morphs: the largest and the median step of 8 patches between two presets, over half as many pairs drawn by
seed 0.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from absl import flags
from numpy.typing import NDArray

from data_pipeline.audio.contract import MAX_PEAK, MIN_LOUDNESS
from data_pipeline.audio.metrics import mss_spectrograms, spectrogram_distance
from data_pipeline.audio.quality import fault
from data_pipeline.console import cli
from data_pipeline.params.spec import load_spec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.synths.preset_files import read
from synthjax.inference import renderer_flags
from synthjax.inference.candidates import Candidate
from synthjax.inference.morph import morph
from synthjax.inference.variations import variations
from synthjax.metrics.parameters import Summary, summarise
from synthjax.retrieval.presets import own_row

FLAGS = flags.FLAGS
AMOUNTS = (0.1, 0.3, 0.5)
# Variations of a preset, and patches of a morph.
PATCHES = 8


def main(argv: list[str]) -> None:
    """The command."""
    if len(argv) > 1 or not FLAGS.presets:
        raise cli.UserError("usage: python -m scripts.benchmarks.variations --presets=FOLDER --spec=NAME")
    spec = load_spec(FLAGS.spec)
    with renderer_flags.start_renderer(spec) as renderer:
        presets = _presets(Path(FLAGS.presets), renderer)
        print(f"variations of {len(presets)} presets: medians of MSS, mean and 95 % interval over presets")
        for amount in AMOUNTS:
            found = np.array([_of_variations(preset, amount, renderer) for preset in presets])
            print(f"amount {amount}: from the preset {_text(found[:, 0])}; between variations {_text(found[:, 1])}")
        pairs = np.random.default_rng(0).permutation(len(presets))[: len(presets) // 2 * 2].reshape(-1, 2)
        steps = np.array([_steps(presets[one], presets[other], renderer) for one, other in pairs])
        largest, median = steps.max(axis=1), np.median(steps, axis=1)
        print(f"morphs of {len(pairs)} pairs, {PATCHES} patches: largest step {_text(largest)}, median {_text(median)}")
        ratio = np.median(largest / np.maximum(median, 1e-3))
        print(f"median over the pairs of the largest step divided by the median step: {ratio:.2f}")


def _presets(folder: Path, renderer: PatchRenderer) -> list[Candidate]:
    """The first presets of a folder that can be heard, rendered."""
    spec, found = renderer.synth.spec, list[Candidate]()
    for path in sorted(folder.iterdir()):
        rows = [own_row(spec, patch) for patch in read(path)[0]]
        for one in sorted(renderer.render(enumerate(rows)), key=lambda one: one.key):
            if one.audio is not None and fault(one.audio, MIN_LOUDNESS, MAX_PEAK) is None:
                found.append(Candidate(rows[one.key], audio=one.audio))
    return found[: FLAGS.count]


def _of_variations(preset: Candidate, amount: float, renderer: PatchRenderer) -> tuple[float, float]:
    """The median distances of variations from their preset, and from each other."""
    made = variations(preset, PATCHES, amount, renderer)
    away = [_distance(preset, one) for one in made]
    return float(np.median(away)), float(np.median([_distance(*pair) for pair in combinations(made, 2)]))


def _steps(first: Candidate, last: Candidate, renderer: PatchRenderer) -> list[float]:
    return [_distance(one, after) for one, after in pairwise(morph(first, last, PATCHES, renderer))]


def _distance(one: Candidate, other: Candidate) -> float:
    assert one.audio is not None
    assert other.audio is not None
    return spectrogram_distance(mss_spectrograms(one.audio), mss_spectrograms(other.audio))


def _text(values: NDArray[np.float64]) -> str:
    summary: Summary = summarise(values)
    return f"{summary.mean:.2f} ({summary.low:.2f} to {summary.high:.2f})"


if __name__ == "__main__":
    renderer_flags.define()
    flags.DEFINE_string("presets", "", "Folder of preset files.")
    flags.DEFINE_string("spec", "dexed", "The spec of the presets.")
    flags.DEFINE_integer("count", 20, "Presets to measure.", lower_bound=2)
    cli.run(main)
