"""synthjax: synthesizer parameters from audio, by conditional flow matching in JAX."""

__version__ = "0.1.0"
