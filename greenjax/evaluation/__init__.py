"""Evaluation: how well a model does on images that it was not trained on, as numbers and as pictures.

held_out has the masked loss and the best constant to compare it with; classify judges a classifier; outputs computes
features, knn and probe classify them, monitor does so during pre-training; results writes files, pictures draws.
"""
