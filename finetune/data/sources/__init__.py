"""Sources that ``data.root`` can name: class folders, tables, torchvision datasets, demo set."""
