"""srum_jax: self-rewarding post-training of unified multimodal models in JAX."""

__version__ = "0.1.0"
