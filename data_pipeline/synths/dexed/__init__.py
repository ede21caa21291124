"""The DX7, which Dexed plays too: its voices and their files."""
