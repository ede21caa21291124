"""Dexed, the software DX7: its engine, its voices, its files."""
