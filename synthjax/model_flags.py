"""The flags that every command on a trained model takes."""

from __future__ import annotations

from absl import flags

from synthjax import cloud_runs
from synthjax.ignored_flags import refuse_ignored
from synthjax.inference import TrainedModel

# What rows depend on besides the run and the checkpoint.
SETTINGS = ("use_ema", "solver", "steps", "tolerance", "guidance", "guidance_interval")


def define() -> None:
    """Defines --workdir, --checkpoint, --data_root, --use_ema, and what the sampler is told."""
    flags.DEFINE_string("workdir", None, "Folder or gs:// or s3:// URL of a training run.")
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
    flags.mark_flag_as_required("workdir")


def _is_interval(values: list[str] | None) -> bool:
    try:
        return values is None or len(list(map(float, values))) == 2
    except ValueError:
        return False


def changed_settings() -> str:
    """What the flags change of the way in which the run draws rows, for the names of folders: such as
    "-nouse_ema-steps=100", or "" for nothing.
    """
    settings = [flags.FLAGS[name] for name in SETTINGS]
    return "".join(flag.serialize().removeprefix("-") for flag in settings if flag.value != flag.default)


def load_model() -> TrainedModel:
    """The model that the flags name. Raises UserError, also for flags that it would ignore."""
    f = flags.FLAGS
    with cloud_runs.reading(f.workdir) as workdir:
        model = TrainedModel.load(
            workdir,
            checkpoint=f.checkpoint,
            use_ema=f.use_ema,
            solver=f.solver,
            steps=f.steps,
            guidance=f.guidance,
            guidance_interval=f.guidance_interval and (float(f.guidance_interval[0]), float(f.guidance_interval[1])),
            tolerance=f.tolerance,
        )
    refuse_ignored(model.config)
    return model
