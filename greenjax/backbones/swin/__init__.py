"""Swin Transformer (arXiv 2103.14030)."""
