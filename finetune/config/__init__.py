"""YAML schema, loading, error messages and the table of model families; imports no torch."""
