"""The flag --config=configs/NAME.py[:VARIANT,...] with its overrides --config.KEY=VALUE.

ml_collections answers wrong names with tracebacks, or repeats the wrong name. So ``define`` checks the command line
first and ends with one line that lists the names that exist.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from data_pipeline.console.cli import UserError, expand_home, fail

# The configs that come with the code: a link to configs/ in the repository, a package in a wheel.
OURS = Path(__file__).parents[2] / "synthjax" / "configs"


def define(*, default: str | None = None) -> None:
    """Defines --config. Every key of the config can be set, none can be added.

    Args:
      default: the config if the command line names none. Without a default, it must name one.
    """
    expand_home(sys.argv)
    place = _place(sys.argv)
    if place is None and default:
        # Not as the flag's default: ml_collections would read the file at once and end in a traceback.
        sys.argv.insert(1, f"--config={default}")
        place = 1
    if place is not None:
        name, colon, variants = sys.argv[place].partition("=")[2].partition(":")
        path = find(name)
        _check_file(name, path, colon + variants)
        sys.argv[place] = f"--config={path}{colon}{variants}"
        _check_keys(f"{path}{colon}{variants}")
    config_flags.DEFINE_config_file("config", None, "The config file, configs/NAME.py[:VARIANT,...].", lock_config=True)
    flags.mark_flag_as_required("config")


def read() -> ml_collections.ConfigDict:
    """Returns the config that the command line names. Raises UserError if it cannot be read."""
    config = flags.FLAGS.config
    try:
        config.lock()
    except OSError as error:  # ml_collections reports an unreadable file when the config is used.
        raise UserError(f"the config cannot be read: {error.__cause__ or error}") from error
    return config


def find(name: str) -> Path:
    """The file that a path names: the caller's own if there is one, else ours of the same path (configs/NAME.py)."""
    path = Path(name)
    ours = OURS.joinpath(*path.parts[1:])
    return ours if path.parts[:1] == ("configs",) and not path.is_file() and ours.is_file() else path


def _place(argv: list[str]) -> int | None:
    """The place of --config=VALUE in ``argv``, where --config VALUE becomes one argument; None if it is missing."""
    for place, argument in enumerate(argv[1:], 1):
        if re.fullmatch("--?config", argument):
            argv[place : place + 2] = ["=".join([argument, *argv[place + 1 : place + 2]])]
        if re.match("--?config(=|$)", argument):
            return place
    return None


def _check_file(name: str, path: Path, variants: str) -> None:
    if path.is_file():
        if variants and _has_line(path, rb"def get_config\(\)"):
            fail(f"{name} has no variants: leave out {variants!r}")
        return
    folder, common = path if path.is_dir() else path.parent, Path("configs")
    if folder == common or not _configs_in(folder):
        folder, names = common, _configs_in(common) | _configs_in(OURS)
    else:
        names = _configs_in(folder)
    fail(f"there is no config {name or repr(name)}: in {folder} there are {', '.join(sorted(names))}")


def _configs_in(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.py") if _has_line(file, rb"def get_config\(")}


def _has_line(file: Path, beginning: bytes) -> bool:
    """Whether a line of the file begins so; the file is not run."""
    try:
        return re.search(b"^" + beginning, file.read_bytes(), re.MULTILINE) is not None
    except OSError:
        return False


def _check_keys(named: str) -> None:
    """Ends with the keys that exist if a flag --config.KEY names another one."""
    values, argv = flags.FlagValues(), ["", f"--config={named}"]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    try:
        config = values(argv) and values.config.to_dict()
    except (Exception, SystemExit):
        return  # A config that cannot be run: parsing the flags reports the reason.
    for dotted in re.findall(r"^--?config\.([\w.]+)", "\n".join(sys.argv[1:]), re.MULTILINE):
        keys = config
        for name in dotted.split("."):
            if not isinstance(keys, dict) or name not in keys:
                there_are = f"there are {', '.join(keys)}" if isinstance(keys, dict) else "it has no keys below it"
                fail(f"unknown config key {dotted!r}: {name!r} is not there; {there_are}")
            keys = keys[name]
