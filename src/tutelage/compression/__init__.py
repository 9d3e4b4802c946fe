"""Compressing a trained network in several ways under one budget: ``tutelage compress``."""

from tutelage.compression.compress import compress
from tutelage.compression.save import save_compression
from tutelage.compression.variants import Compression, Variant

__all__ = ["Compression", "Variant", "compress", "save_compression"]
