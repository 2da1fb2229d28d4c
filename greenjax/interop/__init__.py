"""Weights to PyTorch libraries and back, by the tables of each family (backbones/*/weights.py).

Read in this order: layouts (finding one, and what its library computes otherwise), entries (which arrays become which
tensors), weights (a model's arrays), files and pickles, selection and fitting (which tensors of a file are meant),
tensors (from arrays to tensors and back), saving, loading. layouts imports no JAX: the command's flags need it.
"""
