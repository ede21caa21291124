"""The flag --config=configs/NAME.py[:VARIANT,...] with its overrides --config.KEY=VALUE.

ml_collections answers wrong names with tracebacks, or repeats the wrong name. So ``define`` checks the command line
first and ends with one line that lists the names that exist.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from data_pipeline.console.cli import UserError, fail


def define(*, default: str | None = None) -> None:
    """Defines --config. Every key of the config can be set, none can be added.

    Args:
      default: the config if the command line names none. Without a default, it must name one.
    """
    named = _named(sys.argv[1:])
    if named is None and default:
        # Not as the flag's default: ml_collections would read the file at once and end in a traceback.
        sys.argv.insert(1, f"--config={default}")
        named = default
    if named is not None:
        _check_file(named)
        _check_keys(named)
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


def _named(arguments: Sequence[str]) -> str | None:
    """The value of --config=VALUE or --config VALUE; None if the flag is missing."""
    for index, argument in enumerate(arguments):
        if match := re.fullmatch("--?config(?:=(.*))?", argument):
            return match[1] if match[1] is not None else "".join(arguments[index + 1 : index + 2])
    return None


def _check_file(named: str) -> None:
    name, colon, variants = named.partition(":")
    path = Path(name)
    if path.is_file():
        if colon and _has_line(path, rb"def get_config\(\)"):
            fail(f"{path} has no variants: leave out ':{variants}'")
        return
    for folder in (path if path.is_dir() else path.parent, Path("configs")):
        if names := [file.name for file in sorted(folder.glob("*.py")) if _has_line(file, rb"def get_config\(")]:
            fail(f"there is no config {name or repr(name)}: in {folder} there are {', '.join(names)}")
    fail(f"there is no config {name or repr(name)}: give the path of a file with a function get_config")


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
