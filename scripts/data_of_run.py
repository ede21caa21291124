"""Checks the config of a run before it is launched; prints its data set on one line and its spec on the next.

The k-osc task has no data set: nothing is printed.

    python scripts/data_of_run.py --config=configs/flow_100k.py --config.data.root=DATA

Takes the flags of synthjax.train; flags other than --config are ignored.
"""

from __future__ import annotations

import sys

from absl import flags

from data_pipeline.console import cli, config_flag
from synthjax.runs.check_config import check_config


def main() -> None:
    """Runs the command."""
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
