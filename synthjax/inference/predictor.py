"""From sounds to patches: draws candidates from the posterior, and ranks them by sound if there is a renderer.

    with PatchRenderer(synth_for(spec), workers=2) as renderer:
        predictor = Predictor.from_workdir("runs/flow", renderer=renderer)
        prediction = predictor.predict([audio], candidates=8)[0]
        prediction.values["pitch"], prediction.best.audio

Shapes: S sounds, K candidates, W row width, T = 176400 samples.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from data_pipeline.audio.coarse_features import CoarseFeatures
from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.params.mixture import Modules
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.synths.choice import panel_of
from synthjax.inference.candidates import (
    BY_INDEX,
    BY_MEDOID,
    BY_SOUND,
    ONLY,
    Candidate,
    Prediction,
    given,
    medoid,
    order,
)
from synthjax.inference.locks import Locks
from synthjax.inference.refine import Budget
from synthjax.inference.refinement import Refinement
from synthjax.inference.scoring import ScoredSound, Target, score, stored
from synthjax.inference.start import Start
from synthjax.inference.target_note import estimate_note, moved, note_values, with_note
from synthjax.methods.examples import PREDICT_NOISE, draw_noise
from synthjax.retrieval.embedding import FRAME_SECONDS, onset
from synthjax.retrieval.index import Patch
from synthjax.retrieval.presets import read_base
from synthjax.retrieval.search import Library
from synthjax.runs import cloud_runs

if TYPE_CHECKING:
    from synthjax.runs.model import Model

# The patches of a library that are rendered for each sound.
NEIGHBOURS = 64


class Predictor:
    """A trained model, libraries, or both, which propose candidates, and a renderer, which ranks them by sound."""

    def __init__(
        self,
        model: Model | None,
        renderer: PatchRenderer | None = None,
        *libraries: Library,
        sounding: bool = True,
        locks: Mapping[str, Any] | None = None,
        start: Start | None = None,
    ) -> None:
        """The answers of a model, libraries, or both.

        Args:
          sounding: the time in which a target sounds counts beside the whole 4 s, as ``scoring`` says.
          locks: raw values by parameter name that every answer has.
          start: a patch to begin with, of which answers keep a part.

        Raises ValueError without model and library, if they are of different specs, and as ``Locks`` does.
        """
        specs = [one.spec for one in (model, *libraries) if one]
        if not specs or any(spec.content_hash != specs[0].content_hash for spec in specs):
            raise ValueError("candidates need a model or a library, of one spec")
        self.spec = specs[0]
        self.model, self.renderer, self.libraries, self.sounding = model, renderer, libraries, sounding
        self.locks, self.start = Locks(self.spec, locks or {}), start

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
        the best ``candidates`` of all are kept. A start is a candidate too.

        A prediction depends on the sound and the seed (default: the run's), not on the other sounds. The first draws
        are the same for every number of candidates. ``batch_size`` sounds are sampled at once. Every size is compiled
        anew, so a caller with many groups of sounds gives the same size for all.
        """
        if not sounds:
            return []
        started = [[self.played(self.start, sound)] if self.start else [] for sound in sounds]
        if self.start and self.start.is_answer:
            return self.rank(sounds, started, candidates)
        mels = np.stack([mel_spectrogram(sound) for sound in sounds])
        proposed: list[list[Candidate]] = [[] for _ in sounds]
        wanted = max(candidates, NEIGHBOURS) if self.renderer else candidates
        for found, near in zip(proposed, self.nearest(sounds, mels, wanted), strict=True):
            found += self._mixed(near, seed) if self.start else near
        if self.model:
            starts = np.stack([one.row for [one] in started]) if self.start else None
            for found, drawn in zip(proposed, self.drawn(mels, candidates, seed, batch_size, starts), strict=True):
                found += drawn
        for found, own in zip(proposed, started, strict=True):
            found += own  # Last: without a renderer, the first is the answer.
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
        starts: Float[np.ndarray, "S W"] | None = None,
    ) -> list[list[Candidate]]:
        """The model's draws for spectrograms in dB; the arguments are those of ``predict``.

        ``starts`` are rows of the start, with the note of each sound.
        """
        assert self.model is not None
        noise = draw_noise(count, self.spec.width, PREDICT_NOISE, self.seed(seed))
        known = self.locks.known if self.locks.values else None
        start = (starts, self.start.keep) if self.start and starts is not None else None
        x0 = np.repeat(noise[None], len(mels), axis=0)
        rows = self.model.draw(mels, x0, batch_size, known=known, start=start)
        base = self.start.base if self.start else None
        return [[Candidate(row, base=base) for row in of_one] for of_one in rows]

    def locking_note(self, names: Collection[str], sound: NDArray[np.floating]) -> Predictor:
        """This predictor, with some parameters of the note locked at the estimate of a sound's."""
        found = copy.copy(self)
        note = note_values(estimate_note(sound), self.spec)
        found.locks = Locks(self.spec, {**self.locks.values, **{name: note[name] for name in names}})
        return found

    def played(self, start: Start, sound: NDArray[np.floating]) -> Candidate:
        """A start, played with an estimate of the target's note, with the locked values."""
        row = with_note(start.row, self.spec, estimate_note(sound)).astype(np.float32)
        return self._locked(Candidate(row, f"the start, {start.name!r}", base=start.base))

    def _mixed(self, near: Sequence[Candidate], seed: int | None) -> list[Candidate]:
        """Candidates of which a part is the start's."""
        assert self.start is not None
        modules, rng = Modules.of(self.spec, panel_of(self.spec)), np.random.default_rng(self.seed(seed))
        return [
            replace(one, row=self.start.mixed(one.row, modules, rng), base=self.start.base, distance=None)
            for one in near
        ]

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
        return [self.heard(sound, proposed, keep) for sound, proposed in zip(sounds, candidates, strict=True)]

    def refine(
        self,
        sound: NDArray[np.floating],
        prediction: Prediction,
        budget: Budget,
        *,
        seed: int | None = None,
        **watching: Any,
    ) -> tuple[Prediction, bool]:
        """Searches from the candidates for a patch that sounds nearer to the target (2, T).

        The prediction is one of ``predict`` or ``rank``. Returns it, with the patch that was found in front if it is
        better, and whether Ctrl-C ended the search. ``watching`` are the further arguments of ``Refinement.within``.
        Raises UserError without a renderer.
        """
        with Refinement(self, sound, prediction, seed=seed) as refinement:
            return refinement.within(budget, **watching)

    def heard(
        self, sound: NDArray[np.floating], candidates: Sequence[Candidate], keep: int | None = None
    ) -> Prediction:
        """Renders candidates and orders them by sound, those that could not be rendered last.

        Coarse scores choose those that are kept. Only these are measured exactly; the others are spare.
        """
        spare: dict[int, Candidate] = {}

        def scored() -> Iterator[tuple[float, int, Candidate]]:
            for number, candidate in self._scored(path, candidates):
                spare[number] = replace(candidate, audio=None)  # Sounds are large.
                yield order(candidate), number, candidate

        with stored(Target.of(sound, sounding=self.sounding, features=CoarseFeatures)) as path:
            kept = heapq.nsmallest(keep or len(candidates), scored(), key=lambda one: one[:2])
        target = Target.of(sound, sounding=self.sounding)
        measured = [_measured(candidate, target) for _, _, candidate in kept]
        for _, number, _ in kept:
            del spare[number]
        if all(candidate.score is None for candidate in measured):
            return self._unheard(measured)
        rest = sorted(spare.items(), key=lambda one: (order(one[1]), one[0]))
        return Prediction(
            self.spec,
            tuple(sorted(measured, key=order)),
            BY_SOUND if len(candidates) > 1 else ONLY,
            spare=tuple(candidate for _, candidate in rest),
        )

    def _scored(self, path: str, candidates: Sequence[Candidate]) -> Iterator[tuple[int, Candidate]]:
        """The rendered candidates with their numbers, in any order, scored against the target stored at ``path``."""
        assert self.renderer is not None
        asked = ((number, given(candidate, self.spec)) for number, candidate in enumerate(candidates))
        for patch in self.renderer.render(asked, measure=ScoredSound(path)):
            points, audio = patch.measured or (None, None)
            yield patch.key, replace(candidates[patch.key], audio=audio, score=points, fault=patch.fault)

    def _locked(self, candidate: Candidate) -> Candidate:
        if not self.locks.values:
            return candidate
        base = candidate.base and replace(candidate.base, written=self.locks.values.keys())
        return replace(candidate, row=self.locks.on(candidate.row), base=base)

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
        found: dict[str, Any] = {"seed": self.seed(seed)}
        if self.model:
            found |= {"checkpoint": self.model.step, "sampling": self.model.sampling.about()}
        return found

    def seed(self, seed: int | None) -> int:
        """A given seed, or else the run's."""
        if seed is None:
            return self.model.config.seed if self.model else 0
        return seed


def _measured(candidate: Candidate, target: Target) -> Candidate:
    """A candidate with its distances and its score in the precision of the target."""
    if candidate.audio is None:
        return candidate
    distances = target.distances(candidate.audio)
    return replace(candidate, distances=distances, score=score(distances))
