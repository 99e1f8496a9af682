"""Attention Is All You Need: the library that the chapters of the book write."""

from .model import Transformer, TransformerConfig
from .translator import Translator

__version__ = "0.1.0"
__all__ = ["Transformer", "TransformerConfig", "Translator", "__version__"]
