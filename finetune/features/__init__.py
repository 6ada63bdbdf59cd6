"""Frozen features: extractor, store, cache policy, compute format, engine."""
