"""From sounds to patches: draws from the posterior, heard and ranked where a renderer is at hand.

    with PatchRenderer(synth_for(spec), workers=2) as renderer:
        predictor = Predictor.from_workdir("runs/flow", renderer=renderer)
        prediction = predictor.predict([audio], candidates=8)[0]
        prediction.values["pitch"], prediction.best.audio

Shapes: S sounds, K candidates, W row width, T = 176400 samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.audio_metrics import SoundFeatures
from data_pipeline.cli import UserError
from data_pipeline.measure_pairs import measure_pairs
from data_pipeline.mel import mel_spectrogram
from data_pipeline.param_spec import ParamSpec
from data_pipeline.patch_renderer import PatchRenderer
from synthjax import cloud_runs
from synthjax.candidates import medoid, score, spread
from synthjax.data import PREDICT_NOISE, draw_noise
from synthjax.inference import TrainedModel

BY_SOUND, BY_MEDOID, ONLY = "nearest in sound", "medoid of the candidates", "only candidate"
REFINED = "refined by sound"


@dataclass(frozen=True)
class Candidate:
    """One draw from the posterior: a row (W,) of columns, real-valued as sampled.

    ``audio`` (2, T) is its render and ``distances`` are the audio metrics to the target; both are missing without a
    renderer, and where the patch could not be rendered, which ``fault`` explains. ``score`` ranks, lower is better.
    """

    row: NDArray[np.float32]
    audio: NDArray[np.float32] | None = None
    distances: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    fault: str = ""


@dataclass(frozen=True)
class Prediction:
    """The candidates of one sound, best first, and by what they were ordered."""

    spec: ParamSpec
    candidates: tuple[Candidate, ...]
    chosen: str

    @property
    def best(self) -> Candidate:
        """The candidate to give."""
        return self.candidates[0]

    @cached_property
    def values(self) -> dict[str, Any]:
        """The best candidate's raw values by parameter name, the note's among them."""
        return self.spec.decode(self.best.row)

    @cached_property
    def spread(self) -> dict[str, float]:
        """How far the candidates differ in each parameter: see ``candidates.spread``."""
        return spread(np.stack([candidate.row for candidate in self.candidates]), self.spec)


class Predictor:
    """A trained model, and a renderer to hear its candidates with; without one they are not ranked by sound."""

    def __init__(self, model: TrainedModel, renderer: PatchRenderer | None = None) -> None:
        self.model = model
        self.renderer = renderer
        self._weights = dict(model.config.ranking)

    @classmethod
    def from_workdir(
        cls,
        workdir: str | Path,
        *,
        renderer: PatchRenderer | None = None,
        checkpoint: str = "best",
        solver: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Predictor:
        """The model of a training run; the sampler's settings default to the run's. Raises UserError."""
        with cloud_runs.reading(workdir) as run:
            model = TrainedModel.load(run, checkpoint=checkpoint, solver=solver, steps=steps, guidance=guidance)
        return cls(model, renderer)

    def predict(
        self,
        sounds: Sequence[NDArray[np.floating]],
        *,
        candidates: int = 1,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> list[Prediction]:
        """Predictions for sounds (2, T) at 44.1 kHz, as ``audio_io.load_sound`` gives them.

        A sound's prediction depends on the seed (default: the run's) and not on the sounds beside it; its first
        draw is the same whatever their number. ``batch_size`` sounds are sampled at once; a caller with many
        groups of sounds gives the same one for all, since every size is compiled anew.
        """
        if not sounds:
            return []
        mels = np.stack([mel_spectrogram(sound) for sound in sounds])
        noise = draw_noise(candidates, self.model.spec.width, PREDICT_NOISE, self._seed(seed))
        rows = self.model.draw(mels, np.repeat(noise[None], len(mels), axis=0), batch_size)
        if self.renderer is None:
            return [self._ordered([Candidate(row) for row in drawn]) for drawn in rows]
        return [self._ordered(found) for found in self.hear(sounds, rows)]

    def refine(
        self, sound: NDArray[np.floating], prediction: Prediction, seconds: float, *, seed: int | None = None
    ) -> tuple[Prediction, bool]:
        """Searches around the best candidate for what sounds nearer to the target (2, T), for so many seconds.

        Returns the prediction, with what was found in front if it is better, and whether Ctrl-C ended the search.
        Raises UserError without a renderer, or without the library.
        """
        from synthjax.refine import refine  # The library is optional.

        if self.renderer is None:
            raise UserError("refinement searches by sound, which needs a renderer")
        rows = np.stack([candidate.row for candidate in prediction.candidates])
        target = SoundFeatures(sound)

        def scores(tried: NDArray[np.floating]) -> NDArray[np.float64]:
            heard = self._hear([target] * len(tried), tried)
            return np.array([math.inf if one.score is None else one.score for one in heard])

        found = refine(
            prediction.best.row,
            scores,
            spec=self.model.spec,
            seconds=seconds,
            workers=self.renderer.workers,
            seed=self._seed(seed),
            candidates=rows,
        )
        if not found.score < found.start_score:
            return prediction, found.interrupted
        [heard] = self._hear([target], found.row[None].astype(np.float32))
        # The mean of several renders: where a synthesizer has chance in it, a single one may be an unlucky one.
        refined = replace(heard, score=found.score)
        return Prediction(self.model.spec, (refined, *prediction.candidates), REFINED), found.interrupted

    def hear(self, sounds: Sequence[NDArray[np.floating]], rows: NDArray[np.floating]) -> list[list[Candidate]]:
        """Renders rows (S, K, W) and measures how far they sound from their targets (2, T), in the rows' order."""
        draws = rows.shape[1]
        targets = [target for sound in sounds for target in [SoundFeatures(sound)] * draws]
        found = self._hear(targets, rows.reshape(-1, rows.shape[-1]))
        return [found[first : first + draws] for first in range(0, len(found), draws)]

    def _hear(self, targets: Sequence[SoundFeatures], rows: NDArray[np.floating]) -> list[Candidate]:
        """Each of N rows (N, W) against its own target."""
        renderer = self.renderer
        assert renderer is not None
        found: dict[int, Candidate] = {}

        def pairs() -> Iterator[tuple[int, SoundFeatures, NDArray[np.float32]]]:
            for patch in renderer.render(enumerate(rows)):
                found[patch.key] = Candidate(rows[patch.key], patch.audio, fault=patch.fault)
                if patch.audio is not None:
                    yield patch.key, targets[patch.key], patch.audio

        for index, distances in measure_pairs(pairs(), renderer.workers):
            found[index] = replace(found[index], distances=distances, score=score(distances, self._weights))
        return [found[index] for index in range(len(rows))]

    def _ordered(self, candidates: Sequence[Candidate]) -> Prediction:
        """By sound where any could be rendered, those that could not last; else the medoid first."""
        if any(candidate.score is not None for candidate in candidates):
            order = sorted(candidates, key=lambda candidate: (candidate.score is None, candidate.score or 0.0))
            chosen = BY_SOUND
        else:
            middle = candidates[medoid(np.stack([candidate.row for candidate in candidates]))]
            order = [middle, *(candidate for candidate in candidates if candidate is not middle)]
            chosen = BY_MEDOID
        return Prediction(self.model.spec, tuple(order), chosen if len(order) > 1 else ONLY)

    def _seed(self, seed: int | None) -> int:
        return self.model.config.seed if seed is None else seed
