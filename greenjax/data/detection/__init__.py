"""Detection: images with boxes, labels and masks of their objects. NumPy only."""
