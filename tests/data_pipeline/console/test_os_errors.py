"""Errors of the system, of the caller and of the file are told apart by errno."""

from __future__ import annotations

import errno
import os

import pytest

from data_pipeline.console.os_errors import ENOTSUPP, errno_of, is_of_system, why, why_unreadable


def os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code), "/some/file")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EMFILE, "Too many open files: raise the limit of open files (ulimit -n)"),
        (errno.EIO, "Input/output error: look at the disk or its network mount"),
        (errno.ESTALE, "Stale file handle: look at the disk or its network mount"),
        (errno.ENOTCONN, "Transport endpoint is not connected: look at"),
        (errno.EROFS, "Read-only file system: write to another folder"),
        (errno.ENOSPC, "No space left on device: make room"),
        (errno.EDQUOT, "Disk quota exceeded: make room"),
        (errno.ENOLCK, "No locks available: the file system has no locks"),
        (ENOTSUPP, "Operation not supported: the file system cannot do this"),
    ],
)
def test_the_systems_errors_come_with_what_to_do(code: int, words: str) -> None:
    assert is_of_system(os_error(code))
    assert why(os_error(code)).startswith(words)
    assert why_unreadable(os_error(code)).startswith(f"cannot be read: {words}")


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG])
def test_the_callers_errors_are_the_systems_words_alone(code: int) -> None:
    assert not is_of_system(os_error(code))
    assert why(os_error(code)) == os.strerror(code)
    assert why_unreadable(os_error(code)) == f"cannot be read: {os.strerror(code)}"


def test_an_error_without_errno_is_damage_in_one_line() -> None:
    error = ValueError("bad\n  magic")
    assert not is_of_system(error)
    assert why_unreadable(error) == "is damaged: bad magic"
    assert why_unreadable(error, "is no preset") == "is no preset: bad magic"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("Unable to open (unable to open file: name = 'a', errno = 24, error message = 'x')", errno.EMFILE),
        ("Failed to write: No space left on device [os_error_code='28']", errno.ENOSPC),
        ("Unable to open (file signature not found)", None),
    ],
)
def test_libraries_quote_the_errno(message: str, code: int | None) -> None:
    assert errno_of(RuntimeError(message)) == code
    assert is_of_system(RuntimeError(message)) == (code is not None)
