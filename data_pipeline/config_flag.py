"""The flag --config=configs/NAME.py[:VARIANT,...] with its overrides --config.KEY=VALUE."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from data_pipeline.cli import UserError, fail


def define(*, default: str | None = None) -> None:
    """Defines --config; every key it has can be set, none can be added.

    Args:
      default: the config file where the command line names none; without it, one must be named.
    """
    if default and not any(re.match("--?config(=|$)", argument) for argument in sys.argv[1:]):
        # As a default of the flag it would be read at once, where errors do not end in one line yet.
        sys.argv.insert(1, f"--config={default}")
    _refuse_no_config(sys.argv[1:])
    _refuse_unknown_keys(sys.argv)
    config_flags.DEFINE_config_file("config", None, "The config file, configs/NAME.py[:VARIANT,...].", lock_config=True)
    flags.mark_flag_as_required("config")


def read() -> ml_collections.ConfigDict:
    """The config that the command line names.

    Raises:
      UserError: if it cannot be read.
    """
    config = flags.FLAGS.config
    try:
        config.lock()
    except OSError as error:  # ml_collections keeps a failure to load until the config is used.
        raise UserError(f"the config cannot be read: {error.__cause__ or error}") from error
    return config


def _refuse_no_config(arguments: Sequence[str]) -> None:
    """Ends with the configs that exist, and for variants of one that has none: ml_collections shows its own insides."""
    for index, argument in enumerate(arguments):
        if match := re.fullmatch("--?config(?:=(.*))?", argument):
            named = match[1] if match[1] is not None else "".join(arguments[index + 1 : index + 2])
            path, colon, variants = named.partition(":")
            if not Path(path).is_file():
                fail(f"there is no config {path or repr(path)}: {_configs_there_are(Path(path))}")
            if colon and _has(Path(path), rb"def get_config\(\)"):
                fail(f"{path} has no variants: leave out ':{variants}'")


def _configs_there_are(path: Path) -> str:
    """Those of the folder where ``path`` was looked for, or else of configs/."""
    for folder in (path if path.is_dir() else path.parent, Path("configs")):
        if names := [file.name for file in sorted(folder.glob("*.py")) if _has(file, rb"def get_config\(")]:
            return f"in {folder} there are {', '.join(names)}"
    return "give the path of a file with a function get_config"


def _has(file: Path, beginning: bytes) -> bool:
    """Whether a line begins so, told without running the file; what cannot be read has none."""
    try:
        return re.search(b"^" + beginning, file.read_bytes(), re.MULTILINE) is not None
    except OSError:
        return False


def _refuse_unknown_keys(argv: list[str]) -> None:
    """Ends with the keys that exist, where ml_collections would only repeat the wrong one."""
    plain = [argument for argument in argv[1:] if re.match("--?config=", argument)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=[argv[0], *plain])
    try:
        keys = values([argv[0], *plain]) and values.config.to_dict()
    except Exception:
        return  # No config or a broken one: the real parser says what is wrong with it.
    for argument in argv[1:]:
        if match := re.match(r"--?config\.([\w.]+)", argument):
            _refuse_unknown_key(match[1], keys)


def _refuse_unknown_key(dotted: str, keys: object) -> None:
    for name in dotted.split("."):
        if not isinstance(keys, dict) or name not in keys:
            there_are = f"there are {', '.join(keys)}" if isinstance(keys, dict) else "it has no keys below it"
            fail(f"unknown config key {dotted!r}: {name!r} is not there; {there_are}")
        keys = keys[name]
