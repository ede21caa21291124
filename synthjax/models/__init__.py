"""The networks of synthjax and the one place that builds them from a config."""

from synthjax.models.build import build_model
from synthjax.models.flow_model import FlowModel

__all__ = ["FlowModel", "build_model"]
