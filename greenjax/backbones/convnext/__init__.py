"""ConvNeXt (arXiv 2201.03545)."""
