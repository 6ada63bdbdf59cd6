"""File and dataset inspection: what is broken, duplicated or misplaced."""
