"""Synthesizers: each turns one patch and one note into sound, alone in its process. ``protocol`` says how."""
