"""Scikit-learn's digits with their classes, dequantised, and their splits."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

DIM, NUM_CLASSES = 64, 10
#: Images to train on, to choose by, and to test.
SIZES = (1300, 200, 297)


class Images(NamedTuple):
    """Levels of the pixels, ``(N, 64)``, and the digits, ``(N, 10)``: a one at each image's."""

    levels: Tensor
    classes: Tensor

    def rows(self, index: Tensor | slice) -> "Images":
        """Some of them."""
        return Images(self.levels[index], self.classes[index])


@dataclass
class Digits:
    """Images to train on, to choose by, and to test."""

    train: Images
    valid: Images
    test: Images


#: Dequantised images to their log densities. Only what is conditional looks at the classes.
LogDensity = Callable[[Images], Tensor]


def load(seed: int = 0) -> Digits:
    """The images, in the split of a seed: the same one always, and no image is tested by two of the first six seeds."""
    from sklearn.datasets import load_digits

    data = load_digits()
    levels = torch.as_tensor(data.data, dtype=torch.get_default_dtype())
    images = Images(levels, one_hot(torch.as_tensor(data.target).long(), NUM_CLASSES).to(levels))
    order = torch.randperm(len(levels), generator=torch.Generator().manual_seed(0))
    return Digits(*(images.rows(part) for part in order.roll(-SIZES[-1] * seed).split(SIZES)))


def dequantised(images: Images, num_copies: int = 1) -> Images:
    """Levels with uniform noise, several times if asked."""
    levels = images.levels.repeat(num_copies, 1)
    return Images(levels + torch.rand_like(levels), images.classes.repeat(num_copies, 1))


def bits_per_dimension(log_prob: Tensor) -> Tensor:
    """Of each image."""
    return -log_prob / (DIM * math.log(2))


def batches(images: Images, steps: int, size: int) -> Iterator[Images]:
    """So many dequantised batches, at random."""
    for _ in range(steps):
        yield dequantised(images.rows(torch.randint(len(images.levels), (size,))))
