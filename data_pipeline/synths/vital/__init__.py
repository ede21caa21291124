"""Vital: its patches and ``.vital`` files, and the engine.

``controls.json`` has facts about Vital's controls, written by ``scripts/vital_spec.py``:

``defaults``   the value of every control in Vital's initial patch, by name.
``displays``   by name of a continuous parameter of the spec, how Vital shows it: [scale, factor, offset, unit].
"""
