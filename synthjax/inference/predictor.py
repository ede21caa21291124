"""From sounds to patches: draws candidates from the posterior, and ranks them by sound if there is a renderer.

    with PatchRenderer(synth_for(spec), workers=2) as renderer:
        predictor = Predictor.from_workdir("runs/flow", renderer=renderer)
        prediction = predictor.predict([audio], candidates=8)[0]
        prediction.values["pitch"], prediction.best.audio

Shapes: S sounds, K candidates, W row width, T = 176400 samples.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from data_pipeline.audio.coarse_features import CoarseFeatures
from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import GivenPatch, PatchRenderer
from data_pipeline.synths.choice import instrument
from synthjax.inference.candidates import medoid, spread
from synthjax.inference.locks import Locks
from synthjax.inference.refine import Budget, refine
from synthjax.inference.scoring import ScoredSound, ScoreOf, Target, score, stored
from synthjax.inference.target_note import estimate_note, moved, with_note
from synthjax.methods.examples import PREDICT_NOISE, draw_noise
from synthjax.retrieval.embedding import FRAME_SECONDS, onset
from synthjax.retrieval.index import Patch
from synthjax.retrieval.presets import Base, read_base
from synthjax.retrieval.search import Library
from synthjax.runs import cloud_runs

if TYPE_CHECKING:
    from synthjax.runs.model import Model

BY_SOUND, BY_MEDOID, ONLY = "nearest in sound", "medoid of the candidates", "only candidate"
BY_INDEX, REFINED = "nearest in the library, by its stored sounds", "refined by sound"
MODEL = "model"
# The patches of a library that are rendered for each sound.
NEIGHBOURS = 64


@dataclass(frozen=True)
class Candidate:
    """A patch that may be the answer.

    Attributes:
      row: (W,); as sampled if the model drew it: not clipped, not rounded.
      origin: where it is from: the model, or a row of the library.
      audio: the render (2, T); None without a renderer, where the patch could not be rendered, and of spare candidates.
      distances: ``Target.distances`` of the render; empty without ``audio``.
      score: ranks the candidates; lower is better, that of spare ones is coarse. None if not rendered.
      fault: why the patch could not be rendered.
      base: the preset that the row changes; None if the row says all of the patch.
      distance: that of its sound in a library to the target.
    """

    row: NDArray[np.float32]
    origin: str = MODEL
    audio: NDArray[np.float32] | None = None
    distances: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    fault: str = ""
    base: Base | None = None
    distance: float | None = None


@dataclass(frozen=True)
class Prediction:
    """The candidates of one sound, best first.

    ``chosen`` says how the first was chosen, ``evaluations`` how many renders a refinement took. ``spare`` are further
    candidates, from which refinement starts too.
    """

    spec: ParamSpec
    candidates: tuple[Candidate, ...]
    chosen: str
    evaluations: int = 0
    spare: tuple[Candidate, ...] = ()

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
    """A trained model, libraries, or both, which propose candidates, and a renderer, which ranks them by sound."""

    def __init__(
        self,
        model: Model | None,
        renderer: PatchRenderer | None = None,
        *libraries: Library,
        sounding: bool = True,
        locks: Mapping[str, Any] | None = None,
    ) -> None:
        """The answers of a model, libraries, or both.

        Args:
          sounding: the time in which a target sounds counts beside the whole 4 s, as ``scoring`` says.
          locks: raw values by parameter name that every answer has.

        Raises ValueError without model and library, if they are of different specs, and as ``Locks`` does.
        """
        specs = [one.spec for one in (model, *libraries) if one]
        if not specs or any(spec.content_hash != specs[0].content_hash for spec in specs):
            raise ValueError("candidates need a model or a library, of one spec")
        self.spec = specs[0]
        self.model, self.renderer, self.libraries, self.sounding = model, renderer, libraries, sounding
        self.locks = Locks(self.spec, locks or {})

    @classmethod
    def from_workdir(
        cls,
        workdir: str | Path,
        *,
        renderer: PatchRenderer | None = None,
        locks: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Predictor:
        """The predictor of a training run, in a folder or at a gs:// or s3:// URL.

        ``settings`` are those of ``Model.load``: ``checkpoint``, ``use_ema`` and the fields of ``Sampling``.
        Raises UserError as ``Model.load`` does.
        """
        from synthjax.runs.model import Model  # Takes a second, which answers without a model need not wait for.

        with cloud_runs.reading(workdir) as run:
            return cls(Model.load(run, **settings), renderer, locks=locks)

    def predict(
        self,
        sounds: Sequence[NDArray[np.floating]],
        *,
        candidates: int = 1,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> list[Prediction]:
        """The predictions for sounds (2, T) at 44.1 kHz, as ``sound_files.load_sound`` returns them.

        The model draws ``candidates`` patches, and with a renderer each library adds its ``NEIGHBOURS`` nearest ones;
        the best ``candidates`` of all are kept. A prediction depends on the sound and the seed (default: the run's),
        not on the other sounds. The first draws are the same for every number of candidates. ``batch_size`` sounds are
        sampled at once. Every size is compiled anew, so a caller with many groups of sounds gives the same size for
        all.
        """
        if not sounds:
            return []
        mels = np.stack([mel_spectrogram(sound) for sound in sounds])
        proposed: list[list[Candidate]] = [[] for _ in sounds]
        wanted = max(candidates, NEIGHBOURS) if self.renderer else candidates
        for found, near in zip(proposed, self.nearest(sounds, mels, wanted), strict=True):
            found += near
        if self.model:
            for found, drawn in zip(proposed, self.drawn(mels, candidates, seed, batch_size), strict=True):
                found += drawn
        return self.rank(sounds, proposed, candidates)

    def nearest(
        self, sounds: Sequence[NDArray[np.floating]], mels: Float[np.ndarray, "S C M F"], count: int
    ) -> list[list[Candidate]]:
        """The ``count`` nearest patches of each library to sounds (2, T) with these spectrograms in dB, nearest first.

        The embeddings of a library begin at the onset, so a patch's note is moved until its sound begins where the
        target does. A preset may be played with any note, so it is played with an estimate of the target's.
        """
        found: list[list[Candidate]] = [[] for _ in sounds]
        for library in self.libraries:
            for near, sound, mel, patches in zip(found, sounds, mels, library.nearest(mels, count), strict=True):
                near += self._candidates(sound, onset(mel) * FRAME_SECONDS, patches)
        return [sorted(near, key=lambda candidate: candidate.distance or 0.0) for near in found]

    def _candidates(self, sound: NDArray[np.floating], start: float, patches: Sequence[Patch]) -> Iterator[Candidate]:
        note = estimate_note(sound) if any(patch.preset for patch in patches) else None
        for patch in patches:
            begin = max(0.0, start - patch.delay)
            if note is None or patch.preset is None:
                yield Candidate(moved(patch.row, self.spec, begin), patch.origin, distance=patch.distance)
            else:
                base = read_base(patch.preset, self.spec)
                row = with_note(patch.row, self.spec, replace(note, start=begin))
                yield Candidate(row, patch.origin, base=base, distance=patch.distance)

    def drawn(
        self,
        mels: Float[np.ndarray, "S C M F"],
        count: int,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> list[list[Candidate]]:
        """The model's draws for spectrograms in dB; the arguments are those of ``predict``."""
        assert self.model is not None
        noise = draw_noise(count, self.spec.width, PREDICT_NOISE, self._seed(seed))
        known = self.locks.known if self.locks.values else None
        rows = self.model.draw(mels, np.repeat(noise[None], len(mels), axis=0), batch_size, known=known)
        return [list(map(Candidate, of_one)) for of_one in rows]

    def rank(
        self,
        sounds: Sequence[NDArray[np.floating]],
        candidates: Sequence[Sequence[Candidate]],
        keep: int | None = None,
    ) -> list[Prediction]:
        """Predictions of given candidates for each sound (2, T), ordered by sound if there is a renderer.

        The first ``keep`` are kept (default: all); with a renderer the others are spare. All get the locked values.
        """
        candidates = [[self._locked(one) for one in proposed] for proposed in candidates]
        if self.renderer is None:
            return [self._unheard(proposed, keep) for proposed in candidates]
        return [self._heard(sound, proposed, keep) for sound, proposed in zip(sounds, candidates, strict=True)]

    def refine(
        self, sound: NDArray[np.floating], prediction: Prediction, budget: Budget, *, seed: int | None = None
    ) -> tuple[Prediction, bool]:
        """Searches from the candidates for a patch that sounds nearer to the target (2, T).

        The prediction is one of ``predict`` or ``rank``. Returns it, with the patch that was found in front if it is
        better, and whether Ctrl-C ended the search. Raises UserError without a renderer.
        """
        renderer = self.renderer
        if renderer is None:
            raise UserError("refinement searches by sound, which needs a renderer")
        played = instrument(renderer.synth.synth)
        # The base patches of the candidates. Beyond the columns of the spec, a row has the number of its own.
        every = (*prediction.candidates, *prediction.spare)
        bases = list(dict.fromkeys(candidate.base for candidate in every))
        starts = [(*candidate.row, bases.index(candidate.base)) for candidate in every]

        def split(row: NDArray[np.floating]) -> Candidate:
            return Candidate(row[:-1].astype(np.float32), base=bases[int(row[-1])])

        def scores(rows: NDArray[np.floating], limit: float) -> NDArray[np.float64]:
            found = np.full(len(rows), math.inf)
            asked = ((number, self._given(split(row))) for number, row in enumerate(rows))
            for patch in renderer.render(asked, measure=ScoreOf(path, limit)):
                if patch.measured is not None:
                    found[patch.key] = patch.measured
            return found

        with stored(Target.of(sound, sounding=self.sounding, features=CoarseFeatures)) as path:
            found = refine(
                starts,
                scores,
                spec=self.spec,
                panel=played.panel,
                budget=budget,
                exact=played.exact,
                seed=self._seed(seed),
                locked=self.locks.values.keys(),
            )
        prediction = replace(prediction, evaluations=found.evaluations)
        if not found.score < found.start_score:
            return prediction, found.interrupted
        origin = f"{prediction.best.origin}, refined with {found.evaluations} renders"
        refined = self._heard(sound, [replace(split(found.row), origin=origin)]).best
        # The search's scores are coarse, so the exact score decides. Where renders differ, the score of one render
        # depends on chance: there the search's mean scores decide.
        if refined.score is None or (played.exact and _order(refined) >= _order(prediction.best)):
            return prediction, found.interrupted
        candidates = (refined, *prediction.candidates)
        return replace(prediction, candidates=candidates, chosen=REFINED), found.interrupted

    def _heard(
        self, sound: NDArray[np.floating], candidates: Sequence[Candidate], keep: int | None = None
    ) -> Prediction:
        """Renders candidates and orders them by sound, those that could not be rendered last.

        Coarse scores choose those that are kept. Only these are measured exactly; the others are spare.
        """
        spare: dict[int, Candidate] = {}

        def scored() -> Iterator[tuple[float, int, Candidate]]:
            for number, candidate in self._scored(path, candidates):
                spare[number] = replace(candidate, audio=None)  # Sounds are large.
                yield _order(candidate), number, candidate

        with stored(Target.of(sound, sounding=self.sounding, features=CoarseFeatures)) as path:
            kept = heapq.nsmallest(keep or len(candidates), scored(), key=lambda one: one[:2])
        target = Target.of(sound, sounding=self.sounding)
        measured = [_measured(candidate, target) for _, _, candidate in kept]
        for _, number, _ in kept:
            del spare[number]
        if all(candidate.score is None for candidate in measured):
            return self._unheard(measured)
        rest = sorted(spare.items(), key=lambda one: (_order(one[1]), one[0]))
        return Prediction(
            self.spec,
            tuple(sorted(measured, key=_order)),
            BY_SOUND if len(candidates) > 1 else ONLY,
            spare=tuple(candidate for _, candidate in rest),
        )

    def _scored(self, path: str, candidates: Sequence[Candidate]) -> Iterator[tuple[int, Candidate]]:
        """The rendered candidates with their numbers, in any order, scored against the target stored at ``path``."""
        assert self.renderer is not None
        asked = ((number, self._given(candidate)) for number, candidate in enumerate(candidates))
        for patch in self.renderer.render(asked, measure=ScoredSound(path)):
            points, audio = patch.measured or (None, None)
            yield patch.key, replace(candidates[patch.key], audio=audio, score=points, fault=patch.fault)

    def _locked(self, candidate: Candidate) -> Candidate:
        if not self.locks.values:
            return candidate
        base = candidate.base and replace(candidate.base, written=self.locks.values.keys())
        return replace(candidate, row=self.locks.on(candidate.row), base=base)

    def _given(self, candidate: Candidate) -> GivenPatch:
        return candidate.base.with_row(candidate.row, self.spec) if candidate.base else candidate.row

    def _unheard(self, candidates: Sequence[Candidate], keep: int | None = None) -> Prediction:
        """Without renders, the library's nearest is first; without a library, the medoid."""
        first, chosen = candidates[0], BY_INDEX
        if not self.libraries:
            first = candidates[medoid(np.stack([candidate.row for candidate in candidates]))]
            chosen = BY_MEDOID if len(candidates) > 1 else ONLY
        others = (candidate for candidate in candidates if candidate is not first)
        return Prediction(self.spec, (first, *others)[:keep], chosen)

    def about(self, seed: int | None) -> dict[str, Any]:
        """Checkpoint, seed and sampler of the answers, as JSON values."""
        found: dict[str, Any] = {"seed": self._seed(seed)}
        if self.model:
            found |= {"checkpoint": self.model.step, "sampling": self.model.sampling.about()}
        return found

    def _seed(self, seed: int | None) -> int:
        if seed is None:
            return self.model.config.seed if self.model else 0
        return seed


def _order(candidate: Candidate) -> float:
    """The score; infinity for a candidate that could not be rendered."""
    return math.inf if candidate.score is None else candidate.score


def _measured(candidate: Candidate, target: Target) -> Candidate:
    """A candidate with its distances and its score in the precision of the target."""
    if candidate.audio is None:
        return candidate
    distances = target.distances(candidate.audio)
    return replace(candidate, distances=distances, score=score(distances))
