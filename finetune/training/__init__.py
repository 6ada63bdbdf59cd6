"""Optimizer, schedule, loop, evaluation, train state, resume, setup of a run and of a stage."""
