"""One plain function per command: it takes a config and returns a result dataclass."""
