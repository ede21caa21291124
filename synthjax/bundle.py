"""Makes a bundle of a model, a library or both: one file that ``predict``, ``evaluate`` and ``library`` take.

    python -m synthjax.bundle export OUT.zip [--workdir=DIR] [--library=INDEX] [--licence=TEXT]
    python -m synthjax.bundle info BUNDLE

A bundle holds weights, config, spec, statistics and library as plain data, and a card that says what they were made of
and what they were measured to do. ``info`` prints the card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from data_pipeline.cloud.urls import is_url
from data_pipeline.console import cli
from data_pipeline.console.cli import UserError
from data_pipeline.console.progress import data_size
from data_pipeline.params.spec import ParamSpec
from synthjax.cluster import jax_settings
from synthjax.evaluation.table import METRICS_FILE, read_table, summaries
from synthjax.inference.target_note import pitch_range
from synthjax.retrieval.index import Index, read_index
from synthjax.runs import model_flags
from synthjax.runs.bundles import LIBRARY, model_files, read_bundle, write_bundle
from synthjax.runs.model import Model

FLAGS = flags.FLAGS
USAGE = "usage: python -m synthjax.bundle export OUT.zip --workdir=DIR --library=INDEX, or info BUNDLE"


def main(argv: list[str]) -> None:
    """The command."""
    match argv[1:]:
        case ["export", name]:
            export(Path(name))
        case ["info", name]:
            print("".join(one for one in read_bundle(name).card if one.isprintable() or one == "\n"), end="")
        case _:
            raise UserError(USAGE)


def export(path: Path) -> None:
    """Writes a bundle. Raises UserError where there is a file already, and for parts of different specs."""
    if path.exists():
        raise UserError(f"{path} exists: remove it, or name another file")
    jax_settings.apply()
    model = model_flags.load_model_if_named()
    index = read_index(Path(FLAGS.library)) if FLAGS.library else None
    if not (model or index):
        raise UserError("nothing to bundle: name a run with --workdir, a library with --library, or both")
    specs = [one.spec for one in (model, index) if one]
    if any(spec.content_hash != specs[0].content_hash for spec in specs):
        raise UserError(f"--library={FLAGS.library} has patches of another spec than the run")
    about: dict[str, Any] = {"licence": FLAGS.licence}
    files: dict[str, bytes] = {}
    if index:
        about["synth"] = index.synth
        files[LIBRARY] = Path(FLAGS.library).read_bytes()
        if any(source.places is not None for source in index.sources):
            raise UserError(f"--library={FLAGS.library} holds presets, whose files would not be in the bundle")
    if model:
        assert model.stats is not None
        about |= {"checkpoint": model.step, "scores": scores(FLAGS.workdir)}
        files |= model_files(model.config, model.stats, model.params)
    write_bundle(path, specs[0], about, card(path.stem, specs[0], model, index, about), files)
    print(f"wrote {path}: {data_size(path.stat().st_size)}")


def scores(workdir: str) -> dict[str, Any]:
    """The means of all evaluations of a run by kind and metric, by the names of their folders."""
    found = {}
    if not is_url(workdir):
        for path in sorted(Path(workdir, "evaluation").glob(f"*/{METRICS_FILE}")):
            if table := read_table(path):
                found[path.parent.name] = {"count": table.count, "metrics": summaries(table.metrics)}
    return found


def card(name: str, spec: ParamSpec, model: Model | None, index: Index | None, about: dict[str, Any]) -> str:
    """The card of a bundle, in Markdown."""
    low, high = pitch_range(spec)
    lines = [f"# {name}", "", f"Patches of spec {spec.name} ({len(spec.synth_params)} parameters)."]
    if index:
        lines += ["", "## Library", "", *index.described()]
    if model:
        lines += ["", "## Model", "", *_model_lines(model)]
        for folder, table in about["scores"].items():
            lines += ["", f"Measured ({folder}, {table['count']} sounds, means):", ""]
            lines += [
                f"- {kind}: " + ", ".join(f"{metric} {one['mean']:.4g}" for metric, one in metrics.items())
                for kind, metrics in table["metrics"].items()
            ]
    lines += [
        "",
        "## Limits",
        "",
        f"One note of at most 4 s, MIDI pitch {low} to {high}, velocity 100, dry: no other sound beside it.",
        "",
        f"Licence: {about['licence'] or 'not stated'}.",
    ]
    return "\n".join(lines) + "\n"


def _model_lines(model: Model) -> list[str]:
    data, train = model.config.data, model.config.train
    learnt_from = data.get("root", "") if data.source == "shards" else f"rows drawn with {data.source}"
    return [
        f"- kind: {model.config.model.kind}, checkpoint {model.step} of {train.steps} steps of {data.batch_size} rows",
        f"- trained on: {learnt_from}; prior: {data.get('prior', '') or 'the weights of the spec'}",
    ]


if __name__ == "__main__":
    model_flags.define(required=False)
    flags.DEFINE_string("library", "", "export: index of known patches (synthjax.library).")
    flags.DEFINE_string("licence", "", "export: licence of the weights and the library.")
    cli.run(main)
