"""Result dataclasses to text or JSON; knows no torch."""
