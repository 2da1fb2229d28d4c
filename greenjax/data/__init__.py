"""Data: from images on disk to batches of images with their masks and plans.

Read in the order of the data: sources (image files and their labels), open (splits and slices), reading (what is taken
of an image), encoded (the part of it that a view needs) with jpeg, decoding and tiff, augment (the view of an image)
and randaugment (more of it in fine-tuning), stream (the order of images), loader (batches), workers and worker_process
(processes that make batches). Beside this way: labels (sets with classes), undecodable (images that cannot be used),
overlap and listing (comparisons of sources), and two commands: prepare makes records, statistics measures pixels.
"""
