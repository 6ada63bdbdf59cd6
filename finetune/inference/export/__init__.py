"""Export of a checkpoint with its preprocessing to other runtimes, verified against ``eval``."""
