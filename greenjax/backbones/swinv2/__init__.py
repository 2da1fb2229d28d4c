"""Swin Transformer V2: statement (family), encoder and PyTorch names (weights)."""
