"""Named recipes, heuristics, and the resolution of ``auto``."""
