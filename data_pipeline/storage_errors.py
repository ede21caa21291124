"""What storage says when something goes wrong: one line, and no secret in it."""

from __future__ import annotations

import logging
import os
import re

from data_pipeline.cli import UserError

HIDDEN = "[hidden]"
# Servers may answer with a whole page.
MAX_REASON_LENGTH = 300
# Shorter values are words rather than secrets, and would tear holes into every message.
MIN_SECRET_LENGTH = 8
_SECRET_VARIABLE = re.compile("KEY|SECRET|TOKEN|PASSWORD")
_SECRETS = (
    (re.compile(r"(?<=//)[^/\s]*@"), f"{HIDDEN}@"),  # user:password@host
    (re.compile(r"\?[^\s'\"]*=[^\s'\"]*"), f"?{HIDDEN}"),  # Query strings, of which signed URLs are made.
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)\b(credential|signature|token|secret|password|key)=[^\s,;&]+"), rf"\1={HIDDEN}"),
    (re.compile(r"\bya29\.[\w.-]+"), HIDDEN),  # What access tokens of Google begin with.
)


class TransientError(UserError):
    """The network or the server failed; the next attempt may succeed."""


class DamagedError(UserError):
    """What arrived is not what was sent."""


def scrub(text: object) -> str:
    """A text without passwords, tokens, signatures, and the values of environment variables that hold such."""
    clean = str(text)
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name.upper()) and len(value) >= MIN_SECRET_LENGTH:
            clean = clean.replace(value, HIDDEN)
    for pattern, replacement in _SECRETS:
        clean = pattern.sub(replacement, clean)
    return clean


def silence(*libraries: str) -> None:
    """Keeps libraries from logging what they also raise, and what is told here in one line."""
    for library in libraries:
        logging.getLogger(library).setLevel(logging.CRITICAL)


def _reason(text: object) -> str:
    clean = " ".join(scrub(text).split())
    return clean if len(clean) <= MAX_REASON_LENGTH else f"{clean[:MAX_REASON_LENGTH]}…"


def missing(url: str) -> UserError:
    """No such bucket or object."""
    bucket = "/".join(url.split("/")[:3])
    return UserError(
        f"{url}: there is no such bucket or object: check the name, or make the bucket with "
        f"python -m data_pipeline.storage make-bucket {bucket}"
    )


def refused(url: str, reason: object, remedy: str) -> UserError:
    """Credentials that do not suffice."""
    return UserError(f"{url}: access is refused ({_reason(reason)}): {remedy}")


def unreachable(url: str, host: str, variable: str) -> TransientError:
    """No connection, or one that broke."""
    return TransientError(
        f"{url}: {scrub(host)} cannot be reached or broke off: check the network and {variable}, then run it again"
    )


def busy(url: str, reason: object) -> TransientError:
    """A server that has too much to do, or fails."""
    return TransientError(f"{url}: the server failed ({_reason(reason)}): run it again later")


def replaced(url: str) -> UserError:
    """An object that changed between listing and reading."""
    return UserError(f"{url}: was replaced while it was read: run it again")


def unexpected(url: str, reason: object) -> UserError:
    """Whatever else a server or its library says."""
    return UserError(f"{url}: {_reason(reason)}")
