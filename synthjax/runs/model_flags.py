"""The flags of every command that loads a trained model, and the check that the run makes use of each flag."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags

from data_pipeline.console.cli import UserError
from synthjax.methods.sampling import Sampling
from synthjax.methods.solvers import DOPRI5
from synthjax.runs import bundles, cloud_runs
from synthjax.runs.bundles import Bundle, read_bundle

if TYPE_CHECKING:
    from synthjax.runs.model import Model

SAMPLER = tuple(field.name for field in fields(Sampling))
RENDERER = ("plugin", "preset", "report_sounds")  # Not --workers, which describes the machine.


def define(*, required: bool = True) -> None:
    """Defines --workdir, --bundle, --checkpoint, --data_root, --use_ema, and a flag for each setting of the sampler.

    ``required``: whether the command needs a training run.
    """
    flags.DEFINE_string("workdir", None, "Folder or gs:// or s3:// URL of a training run.")
    flags.DEFINE_string(
        "bundle",
        None,
        "A model, a library or both in one file: its path, its https://, gs:// or s3:// URL, or the name of one that "
        f"ships with synthjax ({', '.join(bundles.shipped())}).",
    )
    flags.DEFINE_string("checkpoint", "best", "best (by validation), latest, or a step.")
    flags.DEFINE_string("data_root", None, "Folder or URL of the data set; default: where the run had it.")
    flags.DEFINE_bool("use_ema", True, "Use the averaged weights.")
    flags.DEFINE_string("solver", None, "euler, heun, rk4 or dopri5; default: the run's sampling.solver.")
    flags.DEFINE_integer(
        "steps",
        None,
        "Solver steps; default: the run's sampling.steps. dopri5 chooses its own, by --tolerance.",
        lower_bound=1,
    )
    flags.DEFINE_float("tolerance", None, "Error of a step of dopri5; default: the run's sampling.tolerance.")
    flags.DEFINE_float("guidance", None, "Guidance strength, 1 for none; default: the run's sampling.guidance.")
    flags.DEFINE_list(
        "guidance_interval", None, "BEGIN,END: times of guidance; default: the run's sampling.guidance_interval."
    )
    flags.register_validator("guidance_interval", _is_interval, "must be two numbers, as in 0.2,0.8")
    if required:
        flags.mark_flag_as_required("workdir")


def _is_interval(values: list[str] | None) -> bool:
    try:
        return values is None or len(list(map(float, values))) == 2
    except ValueError:
        return False


def changed_settings() -> str:
    """The sampler flags that differ from their defaults, for names of folders: "-nouse_ema-steps=100", or ""."""
    settings = [flags.FLAGS[name] for name in ("use_ema", *SAMPLER)]
    return "".join(flag.serialize().removeprefix("-") for flag in settings if flag.value != flag.default)


def bundle_if_named() -> Bundle | None:
    """The bundle that --bundle names; None without it. Raises UserError, also if --workdir names a second model."""
    f = flags.FLAGS
    bundle = read_bundle(f.bundle) if f.bundle else None
    if bundle and bundle.has_model and f.workdir:
        raise UserError("--workdir and --bundle both name a model: give one of them")
    return bundle


def load_model_if_named(bundle: Bundle | None = None) -> Model | None:
    """The model of --workdir, or of a bundle that holds one; None without. Raises UserError as ``load_model`` does."""
    f = flags.FLAGS
    if f.workdir:
        return load_model()
    if bundle and bundle.has_model:
        for name in ("checkpoint", "data_root", "use_ema"):
            if f[name].present:
                raise UserError(f"{f[name].serialize()} would be ignored: a bundle has one set of weights")
        from synthjax.runs.model import Model  # Takes a second, as in ``load_model``.

        model = Model.of_bundle(bundle, **_sampling())
        refuse_ignored(model.config)
        return model
    for name in filter(_given, ("checkpoint", "data_root", *SAMPLER)):
        raise UserError(f"{f[name].serialize()} would be ignored: neither --workdir nor --bundle names a model")
    return None


def load_model() -> Model:
    """The model of --workdir. Raises UserError, also for a flag that the run would ignore."""
    from synthjax.runs.model import Model  # Takes a second, which answers without a model need not wait for.

    f = flags.FLAGS
    with cloud_runs.reading(f.workdir) as workdir:
        model = Model.load(workdir, checkpoint=f.checkpoint, use_ema=f.use_ema, **_sampling())
    refuse_ignored(model.config)
    return model


def _sampling() -> dict[str, Any]:
    f = flags.FLAGS
    sampling: dict[str, Any] = {name: f[name].value for name in SAMPLER}
    if f.guidance_interval:
        sampling["guidance_interval"] = tuple(map(float, f.guidance_interval))
    return sampling


def refuse_ignored(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for the first flag on the command line that has no effect on the run.

    Args:
      config: the run's, with its ``sampling`` as the flags change it.
    """
    for names, reason in (*_ignored_by_sampler(config), *_ignored_by_data(config.data.source == "k_osc")):
        for name in filter(_given, names):
            raise UserError(f"{flags.FLAGS[name].serialize()} would be ignored: {reason}")


def _given(name: str) -> bool:
    """Whether the command has the flag and the user gave it a value; --norender asks for nothing."""
    if name not in flags.FLAGS:
        return False
    flag = flags.FLAGS[name]
    return flag.present > 0 and flag.value not in (None, "") and flag.value is not False


def _ignored_by_sampler(config: ml_collections.ConfigDict) -> Iterator[tuple[tuple[str, ...], str]]:
    kind, sampling = config.model.kind, config.sampling
    if kind != "flow":
        yield SAMPLER, f"a model of kind {kind} answers without a sampler"
        return
    if sampling.solver == DOPRI5:
        yield ("steps",), f"{DOPRI5} chooses its own, by --tolerance"
    else:
        yield ("tolerance",), f"{sampling.solver} takes as many steps as --steps says; use --solver={DOPRI5}"
    if sampling.guidance == 1.0:
        yield ("guidance_interval",), "guidance 1 is none; say how much with --guidance"


def _ignored_by_data(k_osc: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    f = flags.FLAGS
    if "targets" in f and f.targets:
        yield ("split", "render", "data_root", "allow_external", "report_sounds"), "--targets is measured, not a split"
        return
    if "targets" in f:
        ways = ("bundle", "prior", "library", "presets", "candidates", "refine", "refine_evaluations")
        yield ways, "it belongs to --targets"
    if k_osc:
        unused = ("data_root", "allow_external", "render", *RENDERER)
        yield unused, "the run is one of the k-osc task, which has no data set and no synthesizer"
        return
    yield ("rows",), "a split is measured whole; only of the k-osc task, or for --targets=drawn, --rows are drawn"
    if "render" in f and not f.render:
        yield RENDERER, "nothing is rendered without --render"
