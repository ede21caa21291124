"""The flags that every command on a trained model takes."""

from __future__ import annotations

from absl import flags

from synthjax import cloud_runs
from synthjax.inference import TrainedModel


def define() -> None:
    """Defines --workdir, --checkpoint, --data_root, --use_ema, and the sampler's --solver, --steps, --guidance."""
    flags.DEFINE_string("workdir", None, "Folder or gs:// or s3:// URL of a training run.")
    flags.DEFINE_string("checkpoint", "best", "best (by validation), latest, or a step.")
    flags.DEFINE_string("data_root", None, "Folder or URL of the data set; default: where the run was trained from.")
    flags.DEFINE_bool("use_ema", True, "Use the averaged weights.")
    flags.DEFINE_string("solver", None, "euler, heun, rk4 or dopri5; default: the run's sampling.solver.")
    flags.DEFINE_integer(
        "steps",
        None,
        "Solver steps; default: the run's sampling.steps. dopri5 chooses its own, by the run's sampling.tolerance.",
        lower_bound=1,
    )
    flags.DEFINE_float("guidance", None, "Guidance strength, 1 for none; default: the run's sampling.guidance.")
    flags.mark_flag_as_required("workdir")


def load_model() -> TrainedModel:
    """The model that the flags name. Raises UserError."""
    f = flags.FLAGS
    with cloud_runs.reading(f.workdir) as workdir:
        return TrainedModel.load(
            workdir,
            checkpoint=f.checkpoint,
            use_ema=f.use_ema,
            solver=f.solver,
            steps=f.steps,
            guidance=f.guidance,
        )
