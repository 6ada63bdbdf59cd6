"""Typer commands: parse the arguments, call one command, show its result, set the exit code."""
