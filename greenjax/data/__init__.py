"""Data: from images on disk to batches of uint8 images with their masks and plans.

Read in the order of the data: sources (image files and their labels), open (splits and slices), encoded (the part of an
image that a view needs) with jpeg and decoding, augment (the view of an image) and randaugment (more of it in
fine-tuning), stream (the order of images), loader (batches), workers and worker_process (processes that make batches).
Beside this way: labels (sets with classes), undecodable (images that cannot be used), overlap and listing (comparisons
of sources), and prepare, the command that makes records.
"""
