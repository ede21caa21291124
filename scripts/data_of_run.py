"""Checks the config of a run before anything is paid for, and prints a line each where its data are and their spec.

The k-osc task has none, and nothing is printed.

    python scripts/data_of_run.py --config=configs/flow_100k.py --config.data.root=DATA

Takes the flags of synthjax.train; those that are not of the config are passed over.
"""

from __future__ import annotations

import sys

from absl import flags

from data_pipeline import cli, config_flag
from synthjax.check_config import check_config


def main() -> None:
    """Entry point of the command."""
    config_flag.define()
    flags.FLAGS.set_gnu_getopt()
    try:
        flags.FLAGS(sys.argv, known_only=True)
        config = config_flag.read()
        check_config(config)
    except Exception as error:  # A config file may raise anything while it is read.
        cli.fail(error)
    if config.data.source == "shards":
        print(config.data.root, config.data.spec, sep="\n")


if __name__ == "__main__":
    main()
