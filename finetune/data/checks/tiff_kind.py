"""Descriptions of TIFF files that Pillow does not open; imports no torch."""

from __future__ import annotations

import contextlib
from typing import BinaryIO

from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    COMPRESSION_INFO,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    TiffImageFile,
)


def kind_of_tiff(file: BinaryIO) -> str:
    """Describe a TIFF that Pillow does not open; empty if its header is broken."""
    image = TiffImageFile.__new__(TiffImageFile)
    with contextlib.suppress(Exception):  # the tags read before the failure are kept
        file.seek(0)
        TiffImageFile.__init__(image, file, "")
    tags = getattr(image, "tag_v2", {})
    if IMAGEWIDTH not in tags or IMAGELENGTH not in tags:
        return ""
    compression = tags.get(COMPRESSION, 1)
    if compression not in COMPRESSION_INFO:
        return f"is a TIFF with compression {compression}, which is not read; save it with another"
    bands = tags.get(SAMPLESPERPIXEL, 1)
    bits = tags.get(BITSPERSAMPLE, (1,))[0]
    kind = {2: "signed ", 3: "floating point "}.get(tags.get(SAMPLEFORMAT, (1,))[0], "")
    return (
        f"is a TIFF with {bands} band{'' if bands == 1 else 's'} of {bits} {kind}bits "
        f"(photometric interpretation {tags.get(PHOTOMETRIC_INTERPRETATION, 0)}), which is not "
        "read; save it as grey or RGB with 8 or 16 bits"
    )
