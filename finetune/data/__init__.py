"""From ``data.root`` to labelled paths, inspected files and batches of uint8 pixels."""
