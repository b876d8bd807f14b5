r"""Fashion-MNIST, images of 28 by 28 pixels and 256 levels, dequantised as in the literature.

Debian and Ubuntu ship the files: ``apt-get install dataset-fashion-mnist``.
"""

import gzip
import math
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SHAPE = (1, 28, 28)
DIM, NUM_LEVELS = 784, 256
#: Keeps pixels from 0 and 1, as for MNIST in the literature.
EDGE = 1e-6
#: Where the Debian package puts its files.
PACKAGED = Path("/usr/share/datasets/fashion-mnist")
FILES = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")


class Fashion(NamedTuple):
    """Levels of the pixels, ``(N, 784)`` bytes: 60,000 images to train on, and 10,000 to test."""

    train: Tensor
    test: Tensor


def folder(given: Path | None = None) -> Path:
    """Where the files are: as given, as the environment variable ``FASHION`` says, or where the package puts them.

    :raises FileNotFoundError: if they are not there.
    """
    path = given or Path(os.environ.get("FASHION", PACKAGED))
    missing = [name for name in FILES if not (path / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"Fashion-MNIST: {' and '.join(missing)} not found in {path}; apt-get install dataset-fashion-mnist, or "
            "say where the files are: --data FOLDER, or the environment variable FASHION"
        )
    return path


def load(path: Path) -> Fashion:
    """The images, in the order of the files."""
    return Fashion(*(read(path / name) for name in FILES))


def read(path: Path) -> Tensor:
    """An IDX file of images, ``(N, 784)`` bytes.

    :raises ValueError: if the file is none of 28 by 28 images.
    """
    raw = gzip.decompress(path.read_bytes())
    magic, number, *sides = (int.from_bytes(raw[4 * i : 4 * i + 4], "big") for i in range(4))
    if magic != 2051 or tuple(sides) != SHAPE[1:] or len(raw) != 16 + number * DIM:
        raise ValueError(f"{path}: expected an IDX file of images of 28 x 28 bytes")
    return torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(number, DIM)


def dequantised(levels: Tensor) -> Tensor:
    """Levels with uniform noise: points of ``[0, 256]^784``."""
    pixels = levels.to(torch.get_default_dtype())
    return pixels + torch.rand_like(pixels)


def to_reals(pixels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Pixels in ``[0, 256]`` to real numbers, with the logarithm of the map's Jacobian, a number an image.

    .. math:: z = \mathrm{logit}\,s, \qquad s = \alpha + (1 - 2 \alpha) x / 256
    """
    inside = EDGE + (1 - 2 * EDGE) * pixels / NUM_LEVELS
    reals = inside.logit()
    each = math.log((1 - 2 * EDGE) / NUM_LEVELS) - inside.log() - (-inside).log1p()
    return reals, each.sum(-1)


def to_pixels(reals: Tensor) -> Tensor:
    """The way back."""
    return ((reals.sigmoid() - EDGE) / (1 - 2 * EDGE) * NUM_LEVELS).clamp(0, NUM_LEVELS)


def bits_per_dimension(log_prob: Tensor) -> Tensor:
    """Of each image, from its log density on ``[0, 256]^784``: a bound of what its levels need."""
    return -log_prob / (DIM * math.log(2))
