"""Freezing: patterns, plan, requires_grad and modes, graph split, frozen hashes, freeze report."""
