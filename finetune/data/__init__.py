"""Images: where they lie, which belong together, how they become tensors."""
