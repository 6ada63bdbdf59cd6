"""Validation splits: hold-out by hash, whole groups, and cross-validation folds."""
