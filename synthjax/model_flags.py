"""The flags that every command on a trained model takes."""

from __future__ import annotations

from absl import flags


def define() -> None:
    """Defines --workdir, --checkpoint, --data_root and --use_ema."""
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_string("checkpoint", "best", "best (by validation), latest, or a step.")
    flags.DEFINE_string("data_root", None, "Folder of the data set; default: where the run was trained from.")
    flags.DEFINE_bool("use_ema", True, "Use the averaged weights.")
    flags.mark_flag_as_required("workdir")
