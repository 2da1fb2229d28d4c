"""Weights to PyTorch libraries and back, by the tables of each family (backbones/*/weights.py).

Read in this order: layouts (finding one, and how its library differs), entries (which arrays become which tensors),
weights (a model's arrays), files and pickles, selection (the tensors of a file that fit), tensors (arrays to tensors
and back), saving, loading. layouts imports no JAX: the command's flags need it.
"""
