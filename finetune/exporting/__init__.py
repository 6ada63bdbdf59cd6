"""A checkpoint for other runtimes: the network with its preprocessing, and the proof that it
answers as ``eval`` does."""
