"""Surge XT's patch XML as a tree. The reader has limits, since a patch may come from anyone.

Surge keeps all values in attributes, so text between tags is dropped.
"""

from __future__ import annotations

import math
from xml.etree.ElementTree import Element, TreeBuilder, tostring
from xml.parsers import expat

from data_pipeline.console.cli import UserError

# Surge's own largest patches stay far below.
MAX_XML_BYTES = 8 << 20
MAX_DEPTH = 32
MAX_ELEMENTS = 100_000

_DECLARATION = '<?xml version="1.0" encoding="UTF-8" standalone="yes" ?>'


def parse_patch(xml: bytes) -> Element:
    """Reads the tree of a patch. Raises UserError if it is malformed, too large, or has a DOCTYPE.

    Only a DOCTYPE can declare entities, so none is expanded but XML's own five.
    """
    if len(xml) > MAX_XML_BYTES:
        raise UserError(f"the patch is larger than {MAX_XML_BYTES >> 20} MiB")
    builder = TreeBuilder()
    depth = elements = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > MAX_DEPTH or elements > MAX_ELEMENTS:
            raise UserError("the patch has more elements, or deeper ones, than any of Surge XT's")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse_doctype(*_: object) -> None:
        raise UserError("the patch has a DOCTYPE, which no patch of Surge XT has")

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise UserError(f"the patch is malformed XML: {error}") from error
    root: Element = builder.close()
    if root.tag != "patch":
        raise UserError("the XML is not a Surge XT patch: its root is not <patch>")
    return root


def serialise(root: Element) -> str:
    """Writes the tree as Surge XT does: one line, empty elements as ``<tag />``."""
    return _DECLARATION + tostring(root, encoding="unicode")


def revision(root: Element) -> int:
    """The revision of the patch format: 24 in Surge XT 1.3. Raises UserError if it is missing."""
    return int(finite_number(root.get("revision"), "the patch's revision"))


def parameter_section(root: Element) -> Element:
    """The element whose children are the patch's parameters. Raises UserError if it is missing."""
    section = root.find("parameters")
    if section is None:
        raise UserError("the patch has no parameters")
    return section


def parameters(root: Element) -> dict[str, Element]:
    """The patch's parameters by tag. Of a repeated tag the first counts, as in Surge XT. Raises UserError."""
    return {element.tag: element for element in reversed(parameter_section(root))}


def finite_number(text: str | None, what: str) -> float:
    """The number in an attribute. Raises UserError if it is missing or not finite."""
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{what} is {(text or '')[:40]!r}, not a number")
    return number
