"""Facts about Surge XT (patch revision 24), read from the plugin once: patches can be made without the plugin.

``init_patch.json``    the plugin's init patch without its editor's state; nodes are [tag, attributes, children].
``base_patches.json``  by spec, the changes of its base patch to the init patch: parameters and modulation routings.
``patch_values.json``  by parameter name, its tag in the patch, its type (0 integer, 2 float), and its value there: on
                       the line from raw 0 to raw 1, or one of a list of [raw value, patch value].
``displays.json``      by name of a continuous parameter, its unit, and [patch value, text] for each value that is
                       shown otherwise.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def read(name: str) -> Any:
    """The content of ``name``.json."""
    return json.loads(resources.files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
