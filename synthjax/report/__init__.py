"""Reports for the browser: metrics, sounds to play, spectrograms and parameters. Needs neither JAX nor Flax."""

from synthjax.report.content import Clip, Metric, MetricRow, ParameterRow, SoundEntry
from synthjax.report.writer import ReportWriter

__all__ = ["Clip", "Metric", "MetricRow", "ParameterRow", "ReportWriter", "SoundEntry"]
