"""From sounds to patches: draws candidates from the posterior, and ranks them by sound if there is a renderer.

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

from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.audio.metrics import SoundFeatures, measure_pairs
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import PatchRenderer
from synthjax.inference.candidates import medoid, score, spread
from synthjax.methods.examples import PREDICT_NOISE, draw_noise
from synthjax.runs import cloud_runs
from synthjax.runs.model import Model

BY_SOUND, BY_MEDOID, ONLY = "nearest in sound", "medoid of the candidates", "only candidate"
REFINED = "refined by sound"


@dataclass(frozen=True)
class Candidate:
    """One draw from the posterior.

    Attributes:
      row: (W,), as sampled: not clipped, not rounded.
      audio: the render (2, T); None without a renderer, and where the patch could not be rendered.
      distances: the audio metrics to the target by name; empty without ``audio``.
      score: ranks the candidates; lower is better. None without ``audio``.
      fault: why the patch could not be rendered.
    """

    row: NDArray[np.float32]
    audio: NDArray[np.float32] | None = None
    distances: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    fault: str = ""


@dataclass(frozen=True)
class Prediction:
    """The candidates of one sound, best first; ``chosen`` says how the first was chosen."""

    spec: ParamSpec
    candidates: tuple[Candidate, ...]
    chosen: str

    @property
    def best(self) -> Candidate:
        """The first candidate."""
        return self.candidates[0]

    @cached_property
    def values(self) -> dict[str, Any]:
        """The best candidate's decoded values by parameter name, including pitch and note times."""
        return self.spec.decode(self.best.row)

    @cached_property
    def spread(self) -> dict[str, float]:
        """How far the candidates differ in each parameter: see ``candidates.spread``."""
        return spread(np.stack([candidate.row for candidate in self.candidates]), self.spec)


class Predictor:
    """A trained model, and a renderer for its candidates; without a renderer they are not ranked by sound."""

    def __init__(self, model: Model, renderer: PatchRenderer | None = None) -> None:
        self.model = model
        self.renderer = renderer
        self._weights = dict(model.config.ranking)

    @classmethod
    def from_workdir(cls, workdir: str | Path, *, renderer: PatchRenderer | None = None, **settings: Any) -> Predictor:
        """The predictor of a training run, in a folder or at a gs:// or s3:// URL.

        ``settings`` are those of ``Model.load``: ``checkpoint``, ``use_ema`` and the fields of ``Sampling``.
        Raises UserError as ``Model.load`` does.
        """
        with cloud_runs.reading(workdir) as run:
            return cls(Model.load(run, **settings), renderer)

    def predict(
        self,
        sounds: Sequence[NDArray[np.floating]],
        *,
        candidates: int = 1,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> list[Prediction]:
        """The predictions for sounds (2, T) at 44.1 kHz, as ``sound_files.load_sound`` returns them.

        A prediction depends on the sound and the seed (default: the run's), not on the other sounds. The first draws
        are the same for every number of candidates. ``batch_size`` sounds are sampled at once. Every size is compiled
        anew, so a caller with many groups of sounds gives the same size for all.
        """
        if not sounds:
            return []
        mels = np.stack([mel_spectrogram(sound) for sound in sounds])
        noise = draw_noise(candidates, self.model.spec.width, PREDICT_NOISE, self._seed(seed))
        rows = self.model.draw(mels, np.repeat(noise[None], len(mels), axis=0), batch_size)
        return self.rank(sounds, rows)

    def rank(self, sounds: Sequence[NDArray[np.floating]], rows: NDArray[np.floating]) -> list[Prediction]:
        """Predictions of given rows (S, K, W) for sounds (2, T), ordered by sound if there is a renderer."""
        if self.renderer is None:
            return [self._ordered([Candidate(row) for row in drawn]) for drawn in rows]
        count = rows.shape[1]
        targets = [target for sound in sounds for target in [SoundFeatures(sound)] * count]
        found = self._render(targets, rows.reshape(-1, rows.shape[-1]))
        return [self._ordered(found[first : first + count]) for first in range(0, len(found), count)]

    def refine(
        self, sound: NDArray[np.floating], prediction: Prediction, seconds: float, *, seed: int | None = None
    ) -> tuple[Prediction, bool]:
        """Searches around the best candidate for a patch that sounds nearer to the target (2, T).

        Returns the prediction, with the patch that was found in front if it is better, and whether Ctrl-C ended the
        search. Raises UserError without a renderer, or if cmaes is not installed.
        """
        from synthjax.inference.refine import refine

        if self.renderer is None:
            raise UserError("refinement searches by sound, which needs a renderer")
        rows = np.stack([candidate.row for candidate in prediction.candidates])
        target = SoundFeatures(sound)

        def scores(tried: NDArray[np.floating]) -> NDArray[np.float64]:
            rendered = self._render([target] * len(tried), tried)
            return np.array([math.inf if one.score is None else one.score for one in rendered])

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
        [rendered] = self._render([target], found.row[None].astype(np.float32))
        # The score of the search is a mean over several renders. That of a single render depends on chance.
        refined = replace(rendered, score=found.score)
        return Prediction(self.model.spec, (refined, *prediction.candidates), REFINED), found.interrupted

    def _render(self, targets: Sequence[SoundFeatures], rows: NDArray[np.floating]) -> list[Candidate]:
        """Renders rows (N, W) and measures each against its own target."""
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
        """Orders by sound, candidates that could not be rendered last; without renders, the medoid is first."""
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
