"""Several processes of one run: their ranks, what they exchange, and torch's launcher."""
