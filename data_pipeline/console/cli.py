"""The start and end of every command: flags are parsed, errors become one line, commands run other commands.

Exit codes: 0 done, 1 the command ran and found faults, 2 wrong input or usage, 130 interrupted, 141 the reader of its
output went away.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from data_pipeline.console.machine import raise_limit_of_open_files
from data_pipeline.console.os_errors import is_of_system, why

USAGE_ERROR = 2
INTERRUPTED = 130
READER_GONE = 128 + signal.SIGPIPE
HELP = {f"{dashes}{name}" for dashes in ("-", "--") for name in ("?", "h", "help", "helpshort", "helpfull", "helpxml")}
REQUIRED = re.compile(r"Flag (--\w+) must have a value other than None")
# Packages whose flags --help lists. ml_collections defines --config.
OURS = ("synthjax", "data_pipeline", "ml_collections")
_exit_without_threads = False


class UserError(Exception):
    """An error that the user can mend: one line that says what is wrong and what to do."""


class Failure(SystemExit):
    """The end of a command whose error message is printed already."""

    code: int

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message


def fail(message: object, code: int = USAGE_ERROR) -> NoReturn:
    """Prints ``error: message`` as one line on stderr and exits with ``code``."""
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr, flush=True)
    raise Failure(line, code)


def exit_without_threads() -> None:
    """Makes the command end without waiting for its threads. Threads of some libraries do not end in time."""
    global _exit_without_threads
    _exit_without_threads = True


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses absl flags. Any error, also in a config file, becomes one line and exit code 2."""
    flags.FLAGS.set_gnu_getopt()  # Flags may follow file names.
    _help_with_all_our_flags(argv[0])
    try:
        return flags.FLAGS(list(argv))
    except Failure:
        raise
    except SystemExit as end:
        if not HELP & set(argv):
            fail(f"a config file ended the program ({end})")
        _end_if_output_is_refused()
        raise SystemExit(0) from None  # absl printed the help and exits with 1.
    except Exception as error:  # A config file may raise anything.
        if isinstance(error, OSError):
            _end_if_output_is_refused()  # It did not take the text of --help.
        missing = REQUIRED.findall(str(error))
        fail(f"give {', '.join(missing)} (see --help)" if missing else error)


def expand_home(arguments: list[str]) -> None:
    """Replaces ``~`` at the beginning of a flag's value, as in --output=~/data: most shells leave it as it is."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("-") and value.startswith("~"):
            value = os.path.expanduser(value)
            if value.startswith("~/"):
                fail(f"{argument}: this user has no home folder: set HOME, or give the whole path")
            arguments[index] = name + equals + value


def _help_with_all_our_flags(program: str) -> None:
    """Makes --help list the flags of all modules of this project that the command imports, not only its own."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.split(".")[0] in OURS:
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(program, flag)


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs ``main(argv)`` with parsed flags and exits with the code it returns (None: 0).

    ``UserError`` and errors of the operating system end in one line and exit code 2, Ctrl-C in one line and 130. A
    standard output whose reader went away, as of ``| head``, ends it in silence and 141. Any other exception is a
    defect and keeps its traceback.
    """
    _require_working_folder()
    raise_limit_of_open_files()
    expand_home(sys.argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _Output(**_settings(sys.stdout))
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Messages(**_settings(sys.stderr))

    def guarded(argv: list[str]) -> int:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Libraries log much at INFO.
        try:
            code = main(argv) or 0
            _end_if_output_is_refused()
            return code
        except UserError as error:
            fail(error)
        except OSError as error:
            _end_if_output_is_refused()
            if not isinstance(error, PermissionError) and not is_of_system(error):
                raise
            fail(f"{error.filename}: {why(error)}" if error.filename else why(error))
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)

    try:
        app.run(guarded, flags_parser=parse_flags)
    except BaseException as end:
        if not _exit_without_threads:
            raise
        if not isinstance(end, SystemExit):
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 1)
    raise AssertionError("absl's app.run exits")


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        fail("the working folder was deleted: change to a folder that exists (cd) and run the command again")


class _Output(io.TextIOWrapper):
    """Standard output, which remembers that it did not take some text: the error of a write does not name the file."""

    refused: OSError | None = None

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.refused = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.refused = error
            raise


class _Messages(io.TextIOWrapper):
    """Standard error. A full disk there does not end a command: its messages are dropped.

    A reader that went away does end it, as the reader of standard output.
    """

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            raise
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            raise
        except OSError:
            pass


def _settings(stream: io.TextIOWrapper) -> dict[str, Any]:
    """The arguments for another wrapper of the same stream."""
    return {
        "buffer": stream.buffer,
        "encoding": stream.encoding,
        "errors": "backslashreplace",  # A name that the terminal cannot show must not end the command.
        "line_buffering": stream.line_buffering,
        "write_through": stream.write_through,
    }


def _end_if_output_is_refused() -> None:
    """Ends the command if standard output did not take the text that was printed."""
    refused = getattr(sys.stdout, "refused", None)
    try:
        print(end="", flush=True)
    except OSError as error:
        refused = error
    if refused is not None:
        # The rest of the text is dropped. Else Python would try to write it again at the end, and print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(refused, BrokenPipeError):
            raise SystemExit(READER_GONE)
        fail(f"standard output: {why(refused)}", 1)


def run_command(target: str, arguments: Sequence[str]) -> int:
    """Prints and runs ``python -m TARGET ARGUMENTS``, or a script if TARGET ends in .py. Returns its exit code.

    Ctrl-C reaches the command too. This process ignores it, so that the command can save its state and end.
    """
    how = [target] if target.endswith(".py") else ["-m", target]
    print(f"\n$ {shlex.join(['python', *how, *arguments])}", flush=True)
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.Popen([sys.executable, *how, *arguments]).wait()
    finally:
        signal.signal(signal.SIGINT, before)


def printable(name: object) -> str:
    r"""A file's name or path as text that every encoding of Unicode takes: other bytes are written as \udcXX."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def counted(count: int, noun: str) -> str:
    """A number and its noun, such as ``1 shard`` and ``2 shards``, if the plural takes an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
