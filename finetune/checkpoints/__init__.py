"""Contents of a run directory: file format, checksum, safe loading, run lock, checkpointer."""
