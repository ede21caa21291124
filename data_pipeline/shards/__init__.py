"""The HDF5 contract of data sets: shards, splits, statistics."""
