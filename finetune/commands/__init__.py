"""One plain function a command: a config in, a result dataclass out."""
