"""Makes and searches an index of known patches: the patches whose sounds are nearest to a sound.

    python -m synthjax.library build INDEX --config=configs/render_dexed.py --rows=100000 [--prior=FOLDER]
    python -m synthjax.library add INDEX --config=configs/render_dexed.py --rows=N [--prior=FOLDER]
    python -m synthjax.library search INDEX SOUND... [--count=8]
    python -m synthjax.library info INDEX

``search`` and ``info`` also take --bundle=NAME instead of INDEX.

``build`` draws and renders patches, as render_shards does, and keeps an embedding of each sound: 64 bytes. After Ctrl-C
or a crash the same command goes on. ``add`` appends further patches to an index. With --presets=FOLDER both take the
patches of preset files instead of drawn ones, with --shards=FOLDER the rows of rendered shards. ``search`` prints the
nearest patches of each sound; nothing is rendered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import UInt8

from data_pipeline.audio.contract import SECONDS
from data_pipeline.audio.mel import mel_spectrogram
from data_pipeline.audio.sound_files import load_sound
from data_pipeline.console import cli, config_flag
from data_pipeline.console.cli import UserError
from data_pipeline.console.machine import usable_cores
from data_pipeline.params.counter_rng import LIBRARY_SEED, MAX_SEED
from data_pipeline.render.config import render_settings, supervision, with_prior
from data_pipeline.render.patch_renderer import PatchRenderer
from data_pipeline.render.row_renderer import RenderSettings
from data_pipeline.render.worker_pool import WorkerPool
from data_pipeline.synths.choice import why_no_renderer
from synthjax.cluster import jax_settings
from synthjax.inference.candidate_flags import bundled_index
from synthjax.retrieval.drawn import DrawLog, PooledSettings
from synthjax.retrieval.embedding import FIT_ROWS, Embedding
from synthjax.retrieval.index import Index, Source, read_index, write_index
from synthjax.retrieval.presets import read_presets
from synthjax.retrieval.search import Library
from synthjax.retrieval.stored import read_shards
from synthjax.runs.bundles import read_bundle

FLAGS = flags.FLAGS
USAGE = "usage: python -m synthjax.library build INDEX, or add INDEX, or search INDEX SOUND..., or info INDEX"


def main(argv: list[str]) -> None:
    """The command."""
    match argv[1:]:
        case ["build", name]:
            build(Path(name))
        case ["add", name]:
            add(Path(name))
        case ["search", *names]:
            index, sounds = _known(names)
            if not sounds:
                raise UserError(USAGE)
            search(index, [Path(sound) for sound in sounds])
        case ["info", *names]:
            index, others = _known(names)
            if others:
                raise UserError(USAGE)
            tell(index)
        case _:
            raise UserError(USAGE)


def _known(names: list[str]) -> tuple[Index, list[str]]:
    """The index of --bundle, or else of the first name; and the other names. Raises UserError."""
    if FLAGS.bundle:
        return bundled_index(read_bundle(FLAGS.bundle)), names
    if not names:
        raise UserError(USAGE)
    return read_index(Path(names[0])), names[1:]


@dataclass(frozen=True)
class Made:
    """New patches: name and version of their synthesizer, each source with its pooled spectrograms (n, E).

    ``finish`` is called once they are written.
    """

    synth: tuple[str, str]
    parts: list[tuple[Source, UInt8[np.ndarray, "n E"]]]
    finish: Callable[[], object] = lambda: None

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources alone."""
        return tuple(source for source, _ in self.parts)

    @property
    def sounds(self) -> UInt8[np.ndarray, "N E"]:
        """The pooled spectrograms of all sources."""
        return np.concatenate([sounds for _, sounds in self.parts])


def build(path: Path) -> None:
    """Makes an index. Raises UserError where there is one already."""
    if path.exists():
        raise UserError(f"{path} exists: append to it with add, or name another file")
    settings = _settings()
    made = _made(path, settings, 0)
    embedding = Embedding.fit(made.sounds[:FIT_ROWS])
    codes = embedding.codes(made.sounds)
    write_index(path, Index(settings.synth.spec, made.synth, embedding, codes, made.sources))
    made.finish()
    tell(read_index(path))


def add(path: Path) -> None:
    """Appends patches to an index. Raises UserError for those of another spec or synthesizer."""
    index, settings = read_index(path), _settings()
    if settings.synth.spec.content_hash != index.spec.content_hash:
        raise UserError(f"{path} has patches of spec {index.spec.name}, not of {settings.synth.spec.name}")
    drawn = [source.about["first"] + len(source) for source in index.sources if _same_draw(source, settings)]
    made = _made(path, settings, max(drawn, default=0))
    if made.synth != index.synth:
        raise UserError(f"{path} has sounds of {' '.join(index.synth)}, this is {' '.join(made.synth)}")
    write_index(path, index.with_sources(made.sources, index.embedding.codes(made.sounds)))
    made.finish()
    tell(read_index(path))


def _settings() -> RenderSettings:
    taken = next((name for name in ("presets", "shards") if FLAGS[name].value), None)
    ignored = {"presets": (), "shards": ("plugin", "allow_other_version")}
    for name in ("rows", "prior", "seed", "held", *ignored[taken]) if taken else ():
        if FLAGS[name].present:
            raise UserError(f"{FLAGS[name].serialize()} would be ignored: --{taken} are taken as they are")
    if FLAGS.presets and FLAGS.shards:
        raise UserError("--presets and --shards: take one with build, the other with add")
    config = config_flag.read()
    settings = render_settings(
        config, seed=FLAGS.seed, plugin=FLAGS.plugin, allow_other_version=FLAGS.allow_other_version
    )
    return replace(with_prior(settings, FLAGS.prior), held=FLAGS.held)


def _same_draw(source: Source, settings: RenderSettings) -> bool:
    theirs = [source.about.get(name) for name in ("seed", "prior_hash", "held")]
    return theirs == [settings.seed, settings.prior_hash, settings.held]


def _made(path: Path, settings: RenderSettings, first: int) -> Made:
    """The patches that the flags ask for; those drawn have numbers from ``first``."""
    if FLAGS.shards:
        return Made(*read_shards(Path(FLAGS.shards), settings.synth.spec))
    if reason := why_no_renderer(settings.synth):
        raise UserError(reason)
    return _presets(settings) if FLAGS.presets else _drawn(path, settings, range(first, first + FLAGS.rows))


def _presets(settings: RenderSettings) -> Made:
    """The presets of --presets, rendered."""
    with PatchRenderer(settings.synth, FLAGS.workers, supervision(config_flag.read())) as renderer:
        found = read_presets(Path(FLAGS.presets), settings.synth.spec, renderer)
        return Made((renderer.synth_name, renderer.synth_version), [found])


def _drawn(path: Path, settings: RenderSettings, numbers: range) -> Made:
    """Drawn patches, rendered. A log beside the index keeps them until the index is written."""
    with DrawLog(path.with_name(path.name + ".partial"), settings, numbers) as log:
        if log.missing:
            workers = min(FLAGS.workers, len(log.missing))
            try:
                log.render(WorkerPool(PooledSettings(settings), workers, supervision(config_flag.read())))
            except KeyboardInterrupt:
                done = len(numbers) - len(log.missing)
                cli.fail(
                    f"interrupted; {done} of {len(numbers)} patches are safe, the same command goes on", cli.INTERRUPTED
                )
    assert log.synth is not None
    return Made(log.synth, [log.result()], log.remove)


def search(index: Index, sounds: list[Path]) -> None:
    """Prints the nearest patches of every sound."""
    jax_settings.apply()
    mels = np.stack([mel_spectrogram(load_sound(sound).audio) for sound in sounds])
    for sound, patches in zip(sounds, Library(index).nearest(mels, FLAGS.count), strict=True):
        print(f"\n{sound}")
        for patch in patches:
            print(f"  {patch.distance:8.2f}  {patch.origin}")


def tell(index: Index) -> None:
    """Prints what an index holds."""
    print(*index.described(), sep="\n")


if __name__ == "__main__":
    config_flag.define(default="configs/render_dexed.py")
    flags.DEFINE_integer("rows", 100_000, "build, add: patches to draw and render.", lower_bound=1)
    flags.DEFINE_integer("seed", LIBRARY_SEED, "build, add: seed of the draws.", lower_bound=0, upper_bound=MAX_SEED)
    flags.DEFINE_string(
        "prior",
        "",
        "build, add: folder of preset files; patches are drawn as mixtures of theirs. Default: by the spec.",
    )
    flags.DEFINE_float(
        "held",
        0.0,
        "build, add: seconds for which every note is held, beginning at 0 s. Default: as the spec draws notes.",
        lower_bound=0.0,
        upper_bound=SECONDS,
    )
    flags.DEFINE_string("presets", "", "build, add: folder of preset files to take, instead of drawing patches.")
    flags.DEFINE_string(
        "shards", "", "build, add: folder of shards to take, instead of drawing patches. Nothing is rendered."
    )
    flags.DEFINE_string("plugin", "", "build, add: path of the VST3 plugin.")
    flags.DEFINE_bool("allow_other_version", False, "build, add: accept an untested version of Surge XT.")
    flags.DEFINE_integer("workers", usable_cores(), "build, add: render processes.", lower_bound=1)
    flags.DEFINE_string("bundle", "", "search, info: bundle whose library to use instead of INDEX: name, path or URL.")
    flags.DEFINE_integer("count", 8, "search: patches to print for each sound.", lower_bound=1)
    cli.run(main)
