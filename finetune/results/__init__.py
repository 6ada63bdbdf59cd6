"""Frozen dataclasses returned by commands; standard library only."""
