"""The text of the page: its assets, and its data, written so that no data can become markup or code."""

from __future__ import annotations

import html
import json
from importlib import resources
from string import Template
from typing import Any

_ASSETS = resources.files("synthjax.report").joinpath("assets")
# In the order of their dependencies.
_SCRIPTS = ("elements.js", "summary.js", "sound_list.js", "player.js", "parameters.js", "details.js", "main.js")
_DATA_MARK = "<!-- data -->"


def page_halves(title: str) -> tuple[bytes, bytes]:
    """The page before and after the elements with its data, in UTF-8."""
    template = Template(_asset("page.html"))
    script = "\n".join(map(_asset, _SCRIPTS))
    # Character references can also express the half surrogates in the names of undecodable files.
    safe_title = html.escape(title).encode("ascii", "xmlcharrefreplace").decode("ascii")
    page = template.substitute(title=safe_title, style=_asset("style.css"), script=script)
    before, after = page.encode("utf-8").split(_DATA_MARK.encode())
    return before, after


def data_element(identifier: str, value: Any) -> bytes:
    """An HTML element that holds a JSON value; browsers do not run it."""
    return f'<script type="application/json" id="{identifier}">{script_json(value)}</script>\n'.encode("ascii")


def script_json(value: Any) -> str:
    """ASCII JSON that is safe in HTML and JavaScript: no ``</script>``, no ``<!--``, no line separators.

    Raises ValueError for NaN and infinity.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    # In JSON these three occur only in strings. json.dumps has already escaped all other than ASCII, such as U+2028.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return _ASSETS.joinpath(name).read_text(encoding="utf-8")
