"""Programs beside the two packages: benchmarks, installers, launchers."""
