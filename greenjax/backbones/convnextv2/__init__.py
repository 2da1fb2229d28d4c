"""ConvNeXt V2 (arXiv 2301.00808)."""
