"""The networks, and their construction from a config."""

from synthjax.models.build import build_model
from synthjax.models.flow_model import FlowModel

__all__ = ["FlowModel", "build_model"]
