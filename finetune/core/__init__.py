"""Errors, atomic file writes, seeding, signals, device, threads, memory, reporter and wording."""
