"""What a run needs of the machine: files, locks, processes, the console, compilation in a thread, checkpoints."""
