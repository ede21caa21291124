"""The flags of every command that answers sounds with candidates: where they come from, and how they are refined."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from data_pipeline.console.cli import UserError
from data_pipeline.params.spec import ParamSpec
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.synths.choice import panel_of
from synthjax.inference.locks import parse_locks
from synthjax.inference.refine import Budget
from synthjax.inference.start import Start, read_start
from synthjax.retrieval.embedding import Embedding
from synthjax.retrieval.index import Index, parse_index, read_index
from synthjax.retrieval.presets import read_presets
from synthjax.retrieval.search import Library
from synthjax.runs import model_flags
from synthjax.runs.bundles import Bundle

if TYPE_CHECKING:
    from synthjax.runs.model import Model


# A morph has its two ends and a patch between them at least.
MORPH_LEAST = 3
# Variations of an answer, and patches of a morph, at most.
MOST_MADE = 64


@dataclass(frozen=True)
class Asked:
    """What flags ask of all answers.

    Attributes:
      start: a patch to begin with, if there is one.
      locks: locked raw values by parameter name.
      note_as_found: parameters of the note that are locked as they are found in each sound.
    """

    start: Start | None
    locks: dict[str, Any]
    note_as_found: set[str]


def define(*, candidates: int) -> None:
    """Defines --library, --presets, --candidates, --refine and --refine_evaluations."""
    flags.DEFINE_string("library", "", "Index of known patches (synthjax.library), whose nearest are candidates.")
    flags.DEFINE_string("presets", "", "Folder of preset files, whose nearest patches are candidates too.")
    flags.DEFINE_integer("candidates", candidates, "Candidates for each sound.", lower_bound=1)
    flags.DEFINE_float("refine", 0.0, "Seconds to search from each sound's candidates by rendering.", lower_bound=0.0)
    flags.DEFINE_integer(
        "refine_evaluations", 0, "Renders of that search; beside --refine, whichever ends first.", lower_bound=0
    )


def define_asked() -> None:
    """Defines --lock, --start, --keep, --variations, --amount and --morph."""
    flags.DEFINE_integer(
        "variations", 0, "Variations of each answer to write beside it.", lower_bound=0, upper_bound=MOST_MADE
    )
    flags.DEFINE_float(
        "amount", 0.3, "How far variations are from the answer, at most 1.", lower_bound=0.01, upper_bound=1.0
    )
    flags.DEFINE_integer(
        "morph",
        0,
        "Patches from --start to each answer to write beside it, in steps that sound alike.",
        lower_bound=0,
        upper_bound=MOST_MADE,
    )
    flags.DEFINE_multi_string(
        "lock",
        [],
        "A value that every answer has: NAME=VALUE, or NAME for the value of --start. NAME is a parameter, a pattern "
        "such as op_1_*, or words of a group's name, such as envelopes. note without a value: as found in each sound.",
    )
    flags.DEFINE_string("start", "", "Preset to begin with: FILE, or FILE:VOICE of a bank, counted from 1.")
    flags.DEFINE_float(
        "keep",
        0.5,
        "How much of --start answers keep, to 1, the start itself. With 0, only --lock and --morph look at it.",
        lower_bound=0,
        upper_bound=1,
    )


def asked(spec: ParamSpec) -> Asked:
    """What --lock, --start and --keep say. Raises UserError, also for flags about them that cannot be."""
    f = flags.FLAGS
    if f["keep"].present and not f.start:
        raise UserError(f"--keep={f.keep:g} would be ignored: name a preset with --start")
    if f["amount"].present and not f.variations:
        raise UserError(f"--amount={f.amount:g} would be ignored: say how many with --variations")
    if f.morph and (not f.start or f.morph < MORPH_LEAST):
        raise UserError(f"--morph={f.morph}: a morph goes from --start to the answer, in {MORPH_LEAST} patches or more")
    start = read_start(f.start, spec, f.keep) if f.start else None
    if start and start.is_answer and budget():
        raise UserError("--keep=1 keeps the start as it is: leave out --refine and --refine_evaluations")
    locks, as_found = parse_locks(f.lock, spec, panel_of(spec), spec.decode(start.row) if start else None)
    if len(locks.keys() | as_found) == len(spec.parameters):
        raise UserError("every parameter is locked: there is nothing to find")
    return Asked(start, locks, as_found - locks.keys())


def load() -> tuple[Model | None, Library | None]:
    """The model and the library that the flags name, at least one of them, of one spec. Raises UserError."""
    f = flags.FLAGS
    bundle = model_flags.bundle_if_named()
    model = model_flags.load_model_if_named(bundle)
    library = _library(bundle)
    if not (model or library):
        raise UserError("name a model with --workdir, a library with --library, or a bundle of both with --bundle")
    if model and library and library.spec.content_hash != model.spec.content_hash:
        name = f.library or f.bundle
        raise UserError(f"the library {name} has patches of spec {library.spec.name}, the model {model.spec.name}")
    return model, library


def spec_of(model: Model | None, library: Library | None) -> ParamSpec:
    """The spec of the answers, of a model and a library of which there is at least one."""
    return next(one.spec for one in (model, library) if one)


def libraries(library: Library | None, spec: ParamSpec, renderer: PatchRenderer | None) -> list[Library]:
    """The libraries to search: the one that the flags name, and the presets of --presets, which are rendered first.

    Warns of a library of another synthesizer or version. Raises UserError for presets without a renderer, and as
    ``read_presets`` does.
    """
    found = [library] if library else []
    if library and renderer and library.synth != (renderer.synth_name, renderer.synth_version):
        here = f"{renderer.synth_name} {renderer.synth_version}"
        print(
            f"warning: the library was rendered with {' '.join(library.synth)}, this is {here}: its patches may sound "
            "different here, and others may be nearer",
            file=sys.stderr,
        )
    if folder := flags.FLAGS.presets:
        if renderer is None:
            raise UserError("--presets are ranked by rendering them: leave out --norender")
        source, sounds = read_presets(Path(folder), spec, renderer)
        embedding = library.embedding if library else Embedding.fit(sounds)
        synth = (renderer.synth_name, renderer.synth_version)
        found.append(Library(Index(spec, synth, embedding, embedding.codes(sounds), (source,))))
    return found


def _library(bundle: Bundle | None) -> Library | None:
    if name := flags.FLAGS.library:
        return Library(read_index(Path(name)))
    return Library(bundled_index(bundle)) if bundle and bundle.library else None


def bundled_index(bundle: Bundle) -> Index:
    """The library of a bundle. Raises UserError if there is none, and for one that names files of another machine."""
    if bundle.library is None:
        raise UserError(f"the bundle {bundle.name} holds no library")
    index = parse_index(bundle.library, bundle.name)
    if any(source.places is not None for source in index.sources):
        raise UserError(f"{bundle.name}: its library holds presets, whose files are not in a bundle")
    return index


def budget() -> Budget | None:
    """The budget of a refinement; None if no flag asks for one."""
    f = flags.FLAGS
    if not (f.refine or f.refine_evaluations):
        return None
    return Budget(f.refine or math.inf, f.refine_evaluations or math.inf)


def about() -> dict[str, Any]:
    """The values of the flags that were given, as JSON values."""
    f = flags.FLAGS
    names = ["workdir", "library", "bundle", "presets", "candidates", "refine", "refine_evaluations"]
    if "start" in f:
        names += ["lock", "start", "variations", "morph"]
        names += [name for name, of in (("keep", f.start), ("amount", f.variations)) if of]
    return {name: f[name].value for name in names if f[name].value}
