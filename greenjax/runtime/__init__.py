"""The machine below a run: files, locks, processes, the console, compilation in a thread, caches, checkpoints."""
