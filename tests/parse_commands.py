"""Parses commands of the project against their real flags; ``test_docs`` runs it as a process of its own.

Reads a JSON list of commands (module or path of a script, then its arguments) from stdin. Writes a JSON list of
answers: the error of each command (null if it parses) and the names of its flags. Flags can be defined only once in a
process, so each command is parsed in a fork; the imports are done once, before.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
import warnings
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path

from absl import flags

from data_pipeline.console import cli


def parse(module: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """Runs a module as a command, up to the end of its flags."""
    sys.argv = [module, *arguments]
    cli.run = lambda main: cli.parse_flags(sys.argv)  # type: ignore[assignment]
    error, printed = None, StringIO()
    try:
        with redirect_stderr(printed):
            runpy.run_module(module, run_name="__main__")
    except SystemExit:
        error = printed.getvalue().strip()
    except Exception:
        error = traceback.format_exc()
    return error, list(flags.FLAGS)


def parse_in_fork(module: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    reader, writer = os.pipe()
    if os.fork() == 0:
        with os.fdopen(writer, "w") as pipe:
            json.dump(parse(module, arguments), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = json.load(pipe)
    with suppress(ChildProcessError):
        os.wait()
    return answer


def main() -> None:
    warnings.simplefilter("ignore")  # JAX warns of forks; nothing is computed here.
    answers = []
    for target, *arguments in json.load(sys.stdin):
        module = target.removesuffix(".py").replace("/", ".")
        if Path(f"{module.replace('.', '/')}.py").is_file():
            importlib.import_module(module)
            answers.append(parse_in_fork(module, arguments))
        else:
            answers.append((f"there is no {target}", []))
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
