"""Synthesizers: each turns a patch and a note into sound. ``protocol`` has their interface and their list."""
