"""Errors of cloud storage: one line, without secrets."""

from __future__ import annotations

import logging
import os
import re

from data_pipeline.console.cli import UserError

HIDDEN = "[hidden]"
# Some servers answer with a whole page.
MAX_REASON_LENGTH = 300
# Shorter values are words rather than secrets, and occur in ordinary messages.
MIN_SECRET_LENGTH = 8
_SECRET_VARIABLE = re.compile("KEY|SECRET|TOKEN|PASSWORD")
_SECRETS = (
    (re.compile(r"(?<=//)[^/\s]*@"), f"{HIDDEN}@"),  # user:password@host
    (re.compile(r"\?[^\s'\"]*=[^\s'\"]*"), f"?{HIDDEN}"),  # Query strings, as of signed URLs.
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)\b(credential|signature|token|secret|password|key)=[^\s,;&]+"), rf"\1={HIDDEN}"),
    (re.compile(r"\bya29\.[\w.-]+"), HIDDEN),  # Access tokens of Google.
)


class TransientError(UserError):
    """The network or the server failed; the next attempt may succeed."""


class DamagedError(UserError):
    """The bytes that arrived differ from those that were sent."""


def scrub(text: object) -> str:
    """Returns a text without passwords, tokens, signatures, and values of environment variables that hold secrets."""
    clean = str(text)
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name.upper()) and len(value) >= MIN_SECRET_LENGTH:
            clean = clean.replace(value, HIDDEN)
    for pattern, replacement in _SECRETS:
        clean = pattern.sub(replacement, clean)
    return clean


def silence(*libraries: str) -> None:
    """Stops libraries from logging errors that they also raise."""
    for library in libraries:
        logging.getLogger(library).setLevel(logging.CRITICAL)


def _reason(text: object) -> str:
    clean = " ".join(scrub(text).split())
    return clean if len(clean) <= MAX_REASON_LENGTH else f"{clean[:MAX_REASON_LENGTH]}…"


def of_status(url: str, status: int, reason: object, remedy: str) -> UserError:
    """The error for the HTTP status of a server's answer. ``remedy`` is what to do if access is refused."""
    if status in (401, 403):
        return UserError(f"{url}: access is refused ({_reason(reason)}): {remedy}")
    if status == 404:
        bucket = "/".join(url.split("/")[:3])
        return UserError(
            f"{url}: there is no such bucket or object: check the name, or make the bucket with "
            f"python -m data_pipeline.storage make-bucket {bucket}"
        )
    if status == 409:
        return UserError(f"{url}: the bucket exists already, here or elsewhere: choose another name")
    if status == 412:
        return replaced(url)
    if status in (408, 429) or status >= 500:
        return busy(url, reason)
    return unexpected(url, reason)


def unreachable(url: str, host: str, variable: str) -> TransientError:
    """The error for a missing or broken connection."""
    return TransientError(
        f"{url}: {scrub(host)} cannot be reached or broke off: check the network and {variable}, then run it again"
    )


def busy(url: str, reason: object) -> TransientError:
    """The error for a server that is overloaded or fails."""
    return TransientError(f"{url}: the server failed ({_reason(reason)}): run it again later")


def replaced(url: str) -> UserError:
    """The error for a file that changed between listing and reading."""
    return UserError(f"{url}: was replaced while it was read: run it again")


def unexpected(url: str, reason: object) -> UserError:
    """The error for any other message of a server or its library."""
    return UserError(f"{url}: {_reason(reason)}")
