"""Predicts the patches of sounds: python -m synthjax.predict SOUND... --output=DIR

Candidates come from a trained model (--workdir), a library of known patches (--library), or a bundle that holds either
or both (--bundle; by default the one for the DX7 that ships with synthjax). A SOUND is a file, or a folder whose sounds
are all taken. The output folder gets for each sound NAME.json (the value of every
parameter, the pitch and the note's times) and the patch. For Surge XT that is NAME.vstpreset, which loads in any host,
and NAME.fxp for its own browser. For the DX7 it is NAME.syx, a bank with the candidates, best first; with several
sounds banks/1.syx holds the best answer to each. Another VST3 plugin's preset is written if --plugin names it. If the
synthesizer is installed, the candidates are rendered and ranked by how near they sound to the target, and NAME.wav is
the render. report.html shows and plays all. A sound or a folder that cannot be read is reported and left out; then the
exit code is 1.

--lock holds values in all answers, --start begins with a preset, --refine searches for a nearer patch, --variations and
--morph write further patches beside each answer (NAME-variation-1, NAME-morph-1). NAME.search.npz keeps a search that
was stopped: the same command goes on with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from data_pipeline.audio.sound_files import LoadedSound, load_sound
from data_pipeline.console import cli
from data_pipeline.console.atomic import make_folder
from data_pipeline.console.cli import counted
from data_pipeline.console.progress import progress_bar
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.shards.mel_stats import STATS_FILE, load_stats
from synthjax.cluster import distributed, jax_settings
from synthjax.inference import candidate_flags, renderer_flags
from synthjax.inference.candidates import Candidate, Prediction
from synthjax.inference.files import PredictionFiles
from synthjax.inference.morph import morph
from synthjax.inference.predictor import Predictor
from synthjax.inference.sound_paths import find_sounds, require_apart, result_names
from synthjax.inference.target_note import estimate_note, octave_remark
from synthjax.inference.variations import variations
from synthjax.report.entries import described
from synthjax.report.prediction import prediction_report
from synthjax.runs import model_flags

if TYPE_CHECKING:
    from synthjax.runs.model import Model

# The bundle that answers where no flag names a model or a library.
DEFAULT_BUNDLE = "dexed"
# The end of the name of a search that is not done yet, from which the same command goes on.
SEARCH = ".search.npz"


def main(argv: list[str]) -> int:
    """The command."""
    if len(argv) < 2:
        raise cli.UserError("give sounds: python -m synthjax.predict SOUND... --output=DIR")
    f = flags.FLAGS
    if not (f.workdir or f.library or f.bundle):
        f.bundle = DEFAULT_BUNDLE
        print(f"no --workdir, --library or --bundle: --bundle={DEFAULT_BUNDLE}, for the DX7", file=sys.stderr)
    left_out: list[str] = []
    sounds = find_sounds(argv[1:], left_out.append)
    if (f.refine or f.refine_evaluations) and not f.render:
        raise cli.UserError("refinement searches by rendering: leave out --norender")
    output = Path(f.output)
    require_apart(sounds, output)
    make_folder(output)  # Before the long part.
    jax_settings.apply()
    distributed.require_devices()
    model, library = candidate_flags.load()
    if model and f.data_root:
        _check_statistics(model, Path(f.data_root) / STATS_FILE)
    spec = candidate_flags.spec_of(model, library)
    asked = candidate_flags.asked(spec)
    with _renderer(spec) as renderer:
        if renderer is None and (f.variations or f.morph):
            raise cli.UserError("--variations and --morph are chosen by their sounds, which needs a renderer")
        libraries = candidate_flags.libraries(library, spec, renderer)
        start = asked.start if f.keep > 0.0 else None
        predictor = Predictor(model, renderer, *libraries, locks=asked.locks, start=start)
        faults = predict_files(predictor, sounds, output, asked)
    predicted = len(sounds) - len(faults)
    left_out += faults
    if left_out:
        print(f"{predicted} of {len(sounds)} sounds predicted; {len(left_out)} left out:", file=sys.stderr)
        for fault in left_out:
            print(f"  {fault}", file=sys.stderr)
    if predicted:
        print(f"wrote report.html and the patches of {counted(predicted, 'sound')} to {output}")
    return 1 if left_out else 0


def _renderer(spec: ParamSpec) -> AbstractContextManager[PatchRenderer | None]:
    """The renderer that the flags ask for. If there is none and no flag needs one, prints why and gives None."""
    f = flags.FLAGS
    if not f.render:
        return nullcontext()
    try:
        renderer_flags.find_synth(spec)
    except cli.UserError as error:
        if f.refine or f.refine_evaluations:
            raise cli.UserError(f"refinement searches by rendering: {error}") from error
        if f.plugin or f.preset:
            raise
        print(f"no renderer: {error}; the candidates are not ranked by sound", file=sys.stderr)
        return nullcontext()
    return renderer_flags.start_renderer(spec)


def predict_files(
    predictor: Predictor, sounds: Sequence[Path], output: Path, asked: candidate_flags.Asked
) -> list[str]:
    """Writes the results of every sound that can be read; returns an error message for each of the others."""
    f = flags.FLAGS
    files = PredictionFiles(output, predictor.spec, predictor.renderer)
    about = predictor.about(f.seed)
    about |= candidate_flags.about()
    batch_size = predictor.model.batch_size(len(sounds), f.candidates) if predictor.model else 1
    at_once = 1 if asked.note_as_found else batch_size
    names = result_names(sounds)
    budget = candidate_flags.budget()
    faults: list[str] = []
    with (
        closing(files),
        progress_bar("predicting", len(sounds)) as advance,
        prediction_report(output / "report.html", described(about), len(sounds)) as add_to_report,
    ):
        for first in range(0, len(sounds), at_once):
            group = range(first, min(first + at_once, len(sounds)))
            loaded = {index: sound for index in group if (sound := _load(sounds[index], faults))}
            for index, sound in loaded.items() if f.presets else ():
                if remark := octave_remark(estimate_note(sound.audio), predictor.spec):
                    print(f"{sounds[index].name}: {remark}", file=sys.stderr)
            targets = [sound.audio for sound in loaded.values()]
            if asked.note_as_found and targets:
                predictor = predictor.locking_note(asked.note_as_found, targets[0])
            found = predictor.predict(targets, candidates=f.candidates, seed=f.seed, batch_size=batch_size)
            for (index, sound), prediction in zip(loaded.items(), found, strict=True):
                interrupted, about_one = False, {"sound": str(sounds[index]), **about}
                if budget:
                    prediction, interrupted = predictor.refine(
                        sound.audio,
                        prediction,
                        budget,
                        seed=f.seed,
                        keep=output / (names[index] + SEARCH),
                        on_better=partial(files.write, names[index], about=about_one),
                    )
                files.write(names[index], prediction, about_one)
                add_to_report(names[index], sound, prediction)
                if interrupted:
                    raise KeyboardInterrupt
                try:
                    for name, patch in further(predictor, sound, prediction, asked):
                        own = Prediction(predictor.spec, (patch,), patch.origin)
                        files.write(f"{names[index]}-{name}", own, about_one, in_banks=False)
                except cli.UserError as error:
                    print(f"{sounds[index].name} is answered, but has no more: {error}", file=sys.stderr)
                advance(1)
    return faults


def further(
    predictor: Predictor, sound: LoadedSound, prediction: Prediction, asked: candidate_flags.Asked
) -> Iterator[tuple[str, Candidate]]:
    """The variations and the morph of an answer that the flags ask for, each with the end of its files' names."""
    f, best = flags.FLAGS, prediction.best
    if not (f.variations or f.morph):
        return
    assert predictor.renderer is not None
    locked, seed = predictor.locks.values.keys(), predictor.seed(f.seed)
    if f.variations:
        made = variations(best, f.variations, f.amount, predictor.renderer, seed=seed, locked=locked)
        yield from ((f"variation-{number}", one) for number, one in enumerate(made, 1))
    if f.morph:
        assert asked.start
        start = predictor.played(asked.start, sound.audio)
        made = morph(start, best, f.morph, predictor.renderer, seed=seed)
        yield from ((f"morph-{number}", one) for number, one in enumerate(made, 1))


def _load(sound: Path, faults: list[str]) -> LoadedSound | None:
    try:
        loaded = load_sound(sound)
    except cli.UserError as error:
        faults.append(str(error))
        return None
    for note in loaded.notes:
        print(f"{sound.name}: {note}", file=sys.stderr)
    return loaded


def _check_statistics(model: Model, path: Path) -> None:
    """Raises UserError unless the data set at --data_root has the statistics that the model was trained with."""
    if any((mine != theirs).any() for mine, theirs in zip(model.stats or (), load_stats(path), strict=True)):
        raise cli.UserError(f"{path} is not what this model was trained with: leave out --data_root")


if __name__ == "__main__":
    model_flags.define(required=False)
    candidate_flags.define(candidates=4)
    candidate_flags.define_asked()
    flags.DEFINE_string("output", "predictions", "Folder for the results; made if missing.")
    flags.DEFINE_integer("seed", None, "Seed of the draws; default: the run's.", lower_bound=0)
    flags.DEFINE_bool("render", True, "Render the candidates, to rank them by sound.")
    renderer_flags.define()
    cli.run(main)
