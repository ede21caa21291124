"""The paper's synthetic task: its synthesizer and its metrics."""
