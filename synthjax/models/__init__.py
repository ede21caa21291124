"""The networks of synthjax and the one place that builds them from a config."""

from synthjax.models.flow_model import FlowModel, build_model

__all__ = ["FlowModel", "build_model"]
