"""Reports that people open in a browser: metrics, sounds to listen to, spectrograms and parameters side by side.

Needs neither JAX nor Flax.
"""

from synthjax.report.content import Clip, Metric, MetricRow, ParameterRow, SoundEntry
from synthjax.report.writer import ReportWriter

__all__ = ["Clip", "Metric", "MetricRow", "ParameterRow", "ReportWriter", "SoundEntry"]
