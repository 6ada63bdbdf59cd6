"""Fine-tune torchvision image classifiers with pattern freezing, and pay only for what trains."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("finetune-vision")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
