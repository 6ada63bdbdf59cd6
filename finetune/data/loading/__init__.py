"""Decoding, transforms, views, samplers and data loaders."""
