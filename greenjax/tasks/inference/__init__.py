"""A trained model on any images: vectors, classes, reconstructions. Nothing is trained, and no labels are needed.

Read in this order: images (which images), model (which model, and its outputs for every image), formats (files of
outputs), then embed, predict and reconstruct.
"""
