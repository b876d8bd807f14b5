r"""Tables of numbers that scikit-learn ships, made ready for density estimation; no download.

``TABLES`` has wine (178 rows), diabetes (442, with the disease's progression as a column), breast cancer (569), the
digits (1,797) and 5 by 5 patches of scikit-learn's two photographs, grey, their mean taken off and the last pixel left
out [2]. As in the literature's tables [1], columns with fewer than ten values are left out, and so is the second of two
columns whose correlation is above 0.98 in absolute value. Every column is a multiple of some step; uniform noise of
that width makes it continuous. Columns are standardised by the rows to train on, so log densities are of standardised
rows.

A fold is a fifth of the rows (of photographs, a vertical strip of each), so that each row is tested once in five. A
sixth of the others are to choose by.

**References**

[1] G. Papamakarios, T. Pavlakou, I. Murray (2017). Masked Autoregressive Flow for Density Estimation.
[2] D. Zoran, Y. Weiss (2011). From Learning Models of Natural Image Patches to Whole Image Restoration (the patches).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NUM_FOLDS, NUM_COPIES = 5, 10
#: Columns with fewer values are discrete; columns closer than this say the same.
MIN_VALUES, MAX_CORRELATION = 10, 0.98
#: Pixels of a patch's side, and patches of a strip of both photographs.
SIDE, PATCHES_PER_FOLD = 5, 600


class Table(NamedTuple):
    """Rows, ``(N, D)`` in double precision, the step of each column, and the fold of each row."""

    rows: Tensor
    steps: Tensor
    folds: Tensor


class Split(NamedTuple):
    """Standardised rows to train on, to choose by, and to test."""

    train: Tensor
    valid: Tensor
    test: Tensor


def in_folds(rows: Tensor) -> Table:
    """Continuous columns, and rows dealt to folds at random."""
    kept: list[int] = []
    correlation = torch.corrcoef(rows.T).nan_to_num().abs()
    for i, column in enumerate(rows.T):
        if len(column.unique()) >= MIN_VALUES and (correlation[i, kept] <= MAX_CORRELATION).all():
            kept.append(i)
    rows = rows[:, kept]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return Table(rows, torch.stack([step(column) for column in rows.T]), order % NUM_FOLDS)


def step(column: Tensor) -> Tensor:
    """The smallest difference between two of a column's values."""
    return column.unique().diff().min()


def patches() -> Table:
    """Of both photographs, in strips."""
    from sklearn.datasets import load_sample_images

    generator, rows, folds = torch.Generator().manual_seed(0), [], []
    for image in load_sample_images().images:
        grey = torch.tensor(image).double().mean(-1)
        windows = grey.unfold(0, SIDE, 1).unfold(1, SIDE, 1)
        width = windows.shape[1] // NUM_FOLDS
        for fold in range(NUM_FOLDS):
            strip = windows[:, fold * width : (fold + 1) * width - SIDE + 1].flatten(0, 1).flatten(1)
            chosen = torch.randperm(len(strip), generator=generator)[: PATCHES_PER_FOLD // 2]
            rows.append(strip[chosen])
            folds.append(torch.full((len(chosen),), fold))
    table = torch.cat(rows)
    # Grey levels are thirds of whole numbers; the noise comes before the mean is taken off.
    table = table + torch.rand(table.shape, generator=generator, dtype=table.dtype) / 3
    table = (table - table.mean(1, keepdim=True))[:, :-1]
    return Table(table, torch.zeros(table.shape[1]), torch.cat(folds))


def of_scikit_learn(name: str, with_target: bool = False, **options: bool) -> Callable[[], Table]:
    """A table by the name of its function there."""

    def load() -> Table:
        from sklearn import datasets

        data = getattr(datasets, f"load_{name}")(**options)
        rows = torch.as_tensor(data.data).double()
        return in_folds(torch.cat([rows, torch.as_tensor(data.target).double()[:, None]], 1) if with_target else rows)

    return load


TABLES: dict[str, Callable[[], Table]] = {
    "wine": of_scikit_learn("wine"),
    "diabetes": of_scikit_learn("diabetes", with_target=True, scaled=False),
    "cancer": of_scikit_learn("breast_cancer"),
    "digits": of_scikit_learn("digits"),
    "patches": patches,
}
"""Every table, by name."""


def split(table: Table, fold: int) -> Split:
    """A fold to test, and the others; rows to train on are there several times, each with noise of its own."""
    generator = torch.Generator().manual_seed(fold)
    test, rest = (table.folds == fold).nonzero()[:, 0], (table.folds != fold).nonzero()[:, 0]
    rest = rest[torch.randperm(len(rest), generator=generator)]
    valid, train = rest.split([len(rest) // 6, len(rest) - len(rest) // 6])
    parts = []
    for index, copies in ((train, NUM_COPIES if table.steps.any() else 1), (valid, 1), (test, 1)):
        rows = table.rows[index].repeat(copies, 1)
        parts.append(rows + torch.rand(rows.shape, generator=generator, dtype=rows.dtype) * table.steps)
    mean, deviation = parts[0].mean(0), parts[0].std(0)
    return Split(*(((part - mean) / deviation).to(torch.get_default_dtype()) for part in parts))
