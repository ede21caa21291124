"""Hosts, meshes and shardings."""
