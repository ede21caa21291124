"""The CPU stage: synthesizer specs, rendering, HDF5 shards. Imports neither JAX nor synthjax."""
