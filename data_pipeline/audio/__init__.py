"""Sound files, spectrograms, distances between sounds, and the sound contract."""
