"""Metrics of predicted parameters."""
