"""Result dataclasses rendered as text, JSON, plots and HTML; does not import torch."""
