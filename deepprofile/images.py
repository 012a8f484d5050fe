"""Images in: one plane a file, TIFF of any compression, PNG or JPEG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile

from cytominer_tools.errors import InputError

SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


def read_image(path: Path) -> np.ndarray:
    """One grey image in its own counts.

    Returns
    -------
    array, shape (H, W)
        uint8, uint16 or float32 (any other number type becomes float32).

    Raises
    ------
    InputError
        The file is missing, truncated, of another format, or holds more than one plane.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such image")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: not an image of a known format ({', '.join(SUFFIXES)})")
    try:
        # tifffile knows every compression; OpenCV decodes PNG and JPEG several times faster than scikit-image
        image = tifffile.imread(path) if suffix.startswith(".tif") else _decode(path)
        if not image.size:  # what tifffile makes of a file that is cut off before its directory
            raise ValueError("no image data")
    except Exception as error:  # a damaged file makes decoders raise almost anything
        raise InputError(f"{path}: cannot be read, truncated or damaged ({_line(error)}); copy it again") from error
    image = np.squeeze(image)
    if image.ndim == 3 and image.shape[2] == 3 and (image[..., :1] == image).all():
        image = image[..., 0]  # a grey image saved as RGB
    if image.ndim != 2:
        raise InputError(f"{path}: shape {image.shape}, expected one grey plane (height, width); split it by channel")
    return image if image.dtype in (np.uint8, np.uint16) else image.astype(np.float32)


def read_site(paths: Mapping[str, Path], size: Sequence[int] | None = None) -> np.ndarray:
    """The channels of one site, stacked in the order of `paths`.

    Parameters
    ----------
    paths : channel name -> file
    size : (height, width) in pixels, optional
        What every image must have; by default that of the first channel.

    Returns
    -------
    array, shape (H, W, C)
        The type of the images, float32 where the channels differ in theirs.

    Raises
    ------
    InputError
        An image cannot be read, has another size, is flat (one value everywhere) or holds NaN or infinity.
    """
    planes = []
    for channel, path in paths.items():
        plane = read_image(path)
        size = size or plane.shape
        if plane.shape != tuple(size):
            raise InputError(
                f"{path}: {channel} is {_size(plane.shape)} pixels, expected {_size(size)} (height x width)"
            )
        low, high = plane.min(), plane.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(f"{path}: {channel} holds NaN or infinite pixels; export it again")
        if low == high:
            raise InputError(f"{path}: {channel} is flat, every pixel is {low}; look at the image")
        planes.append(plane)
    return np.stack(planes, axis=-1)


def _decode(path: Path) -> np.ndarray:
    raw = np.fromfile(path, np.uint8)  # cv2.imread fails on non-ASCII paths on Windows
    # OpenCV before 5 fills what is cut off a JPEG with grey, and says nothing
    whole = path.suffix.lower() == ".png" or b"\xff\xd9" in raw[-1024:].tobytes()
    image = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED) if whole else None
    if image is None:
        raise ValueError("no image data")
    return image


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
