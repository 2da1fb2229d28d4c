"""Twins (arXiv 2104.13840): Twins-SVT and Twins-PCPVT."""
