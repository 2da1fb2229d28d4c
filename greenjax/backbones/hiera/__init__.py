"""Hiera (arXiv 2306.00989)."""
