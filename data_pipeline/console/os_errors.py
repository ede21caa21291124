"""Errors of the operating system in words for the user: what failed, and what to do.

An error that reaches a message about a file has one of three causes. The caller named a wrong path, the system lacks
something, or the file itself is damaged. The errno tells the first two apart; a damaged file has none.
"""

from __future__ import annotations

import errno
import os
import re

ENOTSUPP = 524  # The kernel's own, which some file systems return; Python has no name for it.
# The file system does not know the call at all, or refuses it on this kind of mount.
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, ENOTSUPP})

_ROOM = "make room, or write to another disk"
_MOUNT = "look at the disk or its network mount (dmesg, mount), then run it again"
# The errors of the system with what to do. Any other errno is the caller's: a path that is wrong or not permitted.
_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, or raise the system's limit (sysctl fs.file-max)",
    errno.ENOMEM: "free memory, or ask for more",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "the file system or the limit (ulimit -f) allows no file of this size: write to another disk",
    errno.EROFS: "write to another folder, or mount it for writing",
    errno.ENOLCK: "the file system has no locks: mount it with locks, or use another disk",
    errno.EILSEQ: "the file system cannot store this name: rename the file",
    **dict.fromkeys(
        (
            errno.EIO,
            errno.EREMOTEIO,
            errno.ESTALE,
            errno.ENOTCONN,
            errno.ETIMEDOUT,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
            errno.ENODEV,
            errno.ENXIO,
            errno.ESHUTDOWN,
        ),
        _MOUNT,
    ),
    **dict.fromkeys((errno.ENOSYS, errno.EOPNOTSUPP, ENOTSUPP), "the file system cannot do this: use another disk"),
}
_CALLER = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EEXIST,
}
# HDF5, also as a RuntimeError of h5py, and TensorStore (below Orbax) quote the errno in their messages.
_QUOTED = re.compile(r"(?:errno = |os_error_code='|\[Errno )(\d+)")


def errno_of(error: BaseException) -> int | None:
    """The errno of an error, or the one that a library's message quotes; None if there is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    quoted = _QUOTED.search(str(error))
    return int(quoted[1]) if quoted else None


def is_of_system(error: BaseException) -> bool:
    """Whether the system lacks something: open files, memory, room, locks, a disk that answers."""
    return errno_of(error) in _REMEDIES


def why(error: BaseException) -> str:
    """The system's own words and what to do; for an error without errno its message, in one line."""
    code = errno_of(error)
    if code is None:
        return " ".join(str(error).split())
    words = "Operation not supported" if code == ENOTSUPP else os.strerror(code)
    return f"{words}: {_REMEDIES[code]}" if code in _REMEDIES else words


def why_unreadable(error: BaseException, damage: str = "is damaged") -> str:
    """Why a file could not be read: ``cannot be read: ...`` by the system's words, or ``damage`` with the message."""
    if errno_of(error) in _REMEDIES.keys() | _CALLER:
        return f"cannot be read: {why(error)}"
    return f"{damage}: {' '.join(str(error).split())}"
