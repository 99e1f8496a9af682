"""Attention Is All You Need, as a package: the code that the chapters of the book write and explain."""

from .model import Transformer, TransformerConfig

__version__ = "0.1.0"
__all__ = ["Transformer", "TransformerConfig", "__version__"]
