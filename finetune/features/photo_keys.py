"""Keys of feature rows: which photo and which view of it a row belongs to.

A photo is known by its path and the state of its file, or by its content; neither its class, its
split nor its place in a list is part of the key. The seed of a random view is part of the key of
the view.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.core.errors import UnreadableError
from finetune.core.files import sha256_of, state_of
from finetune.data.images import Images
from finetune.data.loading.views import Views
from finetune.features.store import Keys

_KEY_BYTES, _PHOTO_BYTES = 16, 8


def photo_id(path: str | os.PathLike[str], known_by: str) -> bytes:
    """Return what identifies a photo: a hash of its path and file state, or of its content.

    Args:
        known_by: ``time`` or ``content``, as in ``features.known_by``.

    Raises:
        OSError: The file cannot be read.
    """
    if known_by == "content":
        text = sha256_of(Path(path))
    else:
        text = f"{os.path.abspath(path)}\0{state_of(os.stat(path))}"  # noqa: PTH100, PTH116
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_KEY_BYTES).digest()


def row_key(photo: bytes, view: str) -> bytes:
    """Return the key of a view of a photo."""
    return hashlib.blake2b(photo + view.encode(), digest_size=_KEY_BYTES).digest()


def keys_of_rows(images: Images, views: Views, known_by: str) -> tuple[Keys, NDArray[np.uint64]]:
    """Return the keys of all views of all images, image by image, and the number of each photo.

    Raises:
        UnreadableError: An image is not there any more.
    """
    assert views.count is not None
    keys, photos = bytearray(), bytearray()
    for path in images.paths:
        try:
            photo = photo_id(path, known_by)
        except OSError as error:
            # The same error as for decoding; an OSError would be reported as one of the store.
            raise UnreadableError([(path, error.strerror or str(error))], passing={path}) from error
        photos += photo[:_PHOTO_BYTES]
        for view in range(views.count):
            keys += row_key(photo, views.key_of(path, view))
    return as_keys(keys), np.frombuffer(photos, np.uint64)


def as_keys(content: bytes | bytearray) -> Keys:
    """Return keys that follow each other as an array."""
    return np.frombuffer(content, np.uint64).reshape(-1, 2)


def numbered(count: int) -> Keys:
    """Return keys that are no more than the numbers of rows."""
    keys = np.zeros((count, 2), np.uint64)
    keys[:, 0] = np.arange(count)
    return keys


def photo_numbers(photos: Sequence[bytes]) -> NDArray[np.uint64]:
    """Return the number of each photo that rows in a store bear."""
    return np.frombuffer(b"".join(photo[:_PHOTO_BYTES] for photo in photos), np.uint64)
