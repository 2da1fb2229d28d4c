"""Data: from images on disk to batches of uint8 images with their masks and plans.

Read in the order of the data: sources (image files and their labels), open (splits and slices of them), encoded
(decoding), augment (the view of an image) and randaugment (more of it in fine-tuning), loader (the order of images, and
batches), workers (the processes that make them). Beside this way: labels (sets with classes), undecodable (images that
cannot be used), overlap and listing (comparisons of sources), and prepare, the command that makes records.
"""
