"""Search space, trials, stacked heads, cross-validation, learning-rate range test."""
