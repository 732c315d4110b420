"""Images as people send them; their size is checked before they are decoded."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from trakstore.serve.question import BadQuestionError

MOST_PIXELS = 2**24  # most pixels of an image


def opened_image(image: Any) -> Any:
    """Open an image; one of more than 16 million pixels is refused before it is decoded."""
    from PIL import Image

    if not isinstance(image, bytes):
        return image if hasattr(image, "getbands") else Image.fromarray(np.asarray(image))
    try:
        # This reads only the header. Formats that run programs, such as EPS, are not accepted.
        opened = Image.open(BytesIO(image), formats=("PNG", "JPEG", "GIF", "BMP", "WEBP"))
        if opened.width * opened.height > MOST_PIXELS:
            raise BadQuestionError(
                f"the image has {opened.width} x {opened.height} pixels, {MOST_PIXELS:,} is the most"
            )
        opened.load()
    except BadQuestionError:
        raise
    except Exception as error:  # decoders raise all kinds of errors for what is no image
        raise BadQuestionError(
            "the image cannot be read: give a PNG, JPEG, GIF, BMP or WebP"
        ) from error
    return opened


def pixels_of(image: Any, channels: int, size: tuple[int, int]) -> Any:
    """Return values from 0 to 255 of an image of a size.

    Parameters
    ----------
    image : PIL image
    channels : {1, 3}
        Shades of grey, or red, green and blue.
    size : (int, int)
        Width and height.

    Returns
    -------
    ndarray of float32, shape (height, width, channels)

    Raises
    ------
    BadQuestionError
        When pixels have 32 bits, whose range is unknown.
    """
    image = _of_bytes(image).convert("L" if channels == 1 else "RGB")
    if image.size != size:
        image = image.resize(size)
    return np.asarray(image, dtype=np.float32).reshape(size[1], size[0], channels)


def _of_bytes(image: Any) -> Any:
    """Return an image with 8 bits a channel; PIL itself would clip values above 255."""
    from PIL import Image

    # A PNG has at most 16 bits, whatever mode PIL opens it in.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(values.round().astype(np.uint8))
    if image.mode[0] in "IF":
        raise BadQuestionError(
            "the image has pixels of 32 bits: give one of 8 or 16 bits a channel"
        )
    return image
