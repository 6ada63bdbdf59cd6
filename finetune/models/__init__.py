"""torchvision networks: build, head, pretrained weights, blocks, layer depths."""
