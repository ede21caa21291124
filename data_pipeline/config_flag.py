"""The flag --config=configs/NAME.py[:VARIANT,...] with its overrides --config.KEY=VALUE."""

from __future__ import annotations

import re
import sys

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
    _refuse_unknown_keys(sys.argv)
    config_flags.DEFINE_config_file("config", None, "The config file, configs/NAME.py[:VARIANT,...].", lock_config=True)
    flags.mark_flag_as_required("config")


def read() -> ml_collections.ConfigDict:
    """The config that the command line names.

    Raises:
      UserError: if there is no such file.
    """
    config = flags.FLAGS.config
    try:
        config.lock()
    except OSError as error:  # ml_collections keeps a failure to load until the config is used.
        raise UserError(f"the config cannot be read: {error.__cause__ or error}") from error
    return config


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
