r"""Which latents a log density ties together: the pattern of its Hessian, found from a few products with it.

A state-space model, a random walk or a field on a grid ties each latent to a few others, however the user has written
it, and perhaps to some *hubs*, such as a scale, that are tied to all. Products with the Hessian are cheap; entries are
not. So the latents are put into groups at random, and for each group three products are made, with vectors
:math:`w_j`, :math:`a_j w_j` and :math:`b_j w_j` for its members :math:`j`, where :math:`(a_j, b_j)` are two digits of
the number :math:`j`. Where a row of the Hessian has one entry in a group, the quotients of the three are its digits; it
is taken off, which may leave other groups with one. How many products it takes depends on how many entries a row has,
and not on how many rows there are. What is found is compared with products with random vectors.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..numerics import LogDensity
from ..system.gradients import pulled

#: Rows ``(N, D)`` times a Hessian.
Products = Callable[[Tensor], Tensor]
#: Points at which entries are looked for: at one of them an entry may happen to be zero.
NUM_POINTS = 2
#: Up to so many latents, all of the Hessian is computed.
MAX_WHOLE = 256
#: Groups of a first and a second attempt, and how often latents are grouped.
NUM_GROUPS, NUM_TIMES = (32, 96), 3
#: Groups by which it is told that a pattern is not sparse.
NUM_FEW = 16
#: A latent that is tied to more others than this is a hub, and there are at most so many of these.
MAX_TIES, MAX_HUBS = 32, 64
#: An entry below this share of the largest in its row is rounding.
ROUNDING = 1e-4
#: Numbers of a batch of products.
BATCH = 2**21


class Pattern(NamedTuple):
    """The pairs of latents that are tied together.

    :param dim: number of latents.
    :param pairs: ``(2, E)``, each pair in both orders, sorted; without the diagonal.
    :param hubs: latents that are tied to many, ``(H,)``, sorted.

    Example::

        >>> chain = lambda z: -(z[:, 1:] - z[:, :-1]).square().sum(-1)
        >>> pattern_of(chain, torch.zeros(4)).pairs
        tensor([[0, 1, 1, 2, 2, 3],
                [1, 0, 2, 1, 3, 2]])
    """

    dim: int
    pairs: Tensor
    hubs: Tensor

    def colors(self) -> Tensor:
        """A number for each latent, such that no row but a hub's has two entries with one number; hubs come first."""
        is_hub, neighbours = self._neighbours()
        colors = [-1] * self.dim
        for number, hub in enumerate(self.hubs.tolist()):
            colors[hub] = number
        for j in range(self.dim):
            if is_hub[j]:
                continue
            taken = {colors[k] for i in neighbours[j] for k in neighbours[i]}
            color = len(self.hubs)
            while color in taken:
                color += 1
            colors[j] = color
        return torch.tensor(colors)

    @property
    def others(self) -> Tensor:
        """Latents that are no hubs, sorted."""
        return _not(self.hubs, self.dim).nonzero()[:, 0]

    def without_hubs(self) -> "Pattern":
        """The pairs of the others, numbered as they come.

        Example::

            >>> star = Pattern(4, torch.tensor([[0, 0, 0, 1, 1, 2, 2, 3], [1, 2, 3, 0, 2, 0, 1, 0]]), torch.tensor([0]))
            >>> star.without_hubs().pairs
            tensor([[0, 1],
                    [1, 0]])
        """
        rest = _not(self.hubs, self.dim)
        pairs = (rest.cumsum(0) - 1)[self.pairs[:, rest[self.pairs].all(0)]]
        return Pattern(int(rest.sum()), pairs, self.hubs[:0])

    def _neighbours(self) -> tuple[list[bool], list[list[int]]]:
        """Of each latent, itself and those tied to it, without hubs."""
        is_hub = torch.zeros(self.dim, dtype=torch.bool, device="cpu")
        is_hub[self.hubs] = True
        neighbours = [[j] for j in range(self.dim)]
        rows, columns = self.pairs[:, ~is_hub[self.pairs].any(0)].tolist()
        for i, j in zip(rows, columns):
            neighbours[j].append(i)
        return is_hub.tolist(), neighbours


def pattern_of(log_joint: LogDensity, near: Tensor) -> Pattern | None:
    """The pattern of a log density; None where it is not sparse, or cannot be found.

    :param log_joint: ``(K, D) -> (K,)``.
    :param near: a point of finite density.
    """
    generator = torch.Generator().manual_seed(0)
    found = list[Tensor]()
    for _ in range(NUM_POINTS):
        at = near + 0.1 * torch.randn(near.shape, generator=generator, device="cpu").to(near)
        pairs = _pairs_of(hessian_products(log_joint, at), near, generator)
        if pairs is None:
            return None
        found.append(pairs.cpu())
    return _with_hubs(len(near), torch.cat(found, 1).unique(dim=1))


def _pairs_of(products: Products, near: Tensor, generator: torch.Generator) -> Tensor | None:
    """The pairs of a Hessian; None where it is not sparse."""
    dim = len(near)
    if _is_dense(products, near, generator):
        return None
    if dim <= MAX_WHOLE:
        return _of_matrix(products(torch.eye(dim, dtype=near.dtype, device=near.device)))
    for num_groups in NUM_GROUPS:
        if 3 * NUM_TIMES * num_groups > dim and num_groups != NUM_GROUPS[0]:
            break
        pairs = _by_groups(products, near, num_groups, generator)
        if pairs is not None:
            return pairs
    return None


def hessian_products(log_joint: LogDensity, at: Tensor) -> Products:
    """Products with the Hessian of a log density at a point, in batches.

    Example::

        >>> hessian_products(lambda z: -z.square().sum(-1), torch.zeros(3))(torch.ones(1, 3))
        tensor([[-2., -2., -2.]])
    """
    with torch.enable_grad():
        at = at.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(log_joint(at[None])[0], at, create_graph=True)

    def products(rows: Tensor) -> Tensor:
        if not (gradient.requires_grad and len(rows)):
            return torch.zeros_like(rows)
        parts = rows.split(max(1, BATCH // rows.shape[1]))
        return torch.cat([pulled(gradient, at, part) for part in parts])

    return products


def _is_dense(products: Products, near: Tensor, generator: torch.Generator) -> bool:
    """Whether most rows have an entry in every one of some groups, as those with many entries have."""
    group = torch.randperm(len(near), generator=generator, device="cpu") % NUM_FEW
    weight = 0.5 + torch.rand(len(near), generator=generator, device="cpu")
    sums = products((torch.nn.functional.one_hot(group, NUM_FEW).T * weight).to(near)).abs()
    known = sums > ROUNDING * sums.amax(0)
    return not bool(torch.isfinite(sums).all()) or float(known.all(0).float().mean()) > 0.5


def _of_matrix(hessian: Tensor) -> Tensor | None:
    if not bool(torch.isfinite(hessian).all()):
        return None
    size = hessian.abs()
    known = size > ROUNDING * size.amax(1, keepdim=True)
    return (known | known.T).fill_diagonal_(False).nonzero().T


def _with_hubs(dim: int, pairs: Tensor) -> Pattern | None:
    """A pattern whose hubs are those with many ties; None where there are too many."""
    hubs = (pairs[0].bincount(minlength=dim) > MAX_TIES).nonzero()[:, 0]
    return None if len(hubs) > MAX_HUBS else Pattern(dim, pairs, hubs)


# ---- many latents -----------------------------------------------------------------------------------------------


def _by_groups(products: Products, near: Tensor, num_groups: int, generator: torch.Generator) -> Tensor | None:
    dim = len(near)
    groups = torch.stack(
        [torch.randperm(dim, generator=generator, device="cpu") % num_groups for _ in range(NUM_TIMES)]
    )
    codes = _codes(dim, generator)
    vectors = torch.nn.functional.one_hot(groups, num_groups).permute(0, 2, 1)[:, :, None] * codes  # (times, groups, 3)
    sums = products(vectors.flatten(0, 2).to(near)).double().unflatten(0, vectors.shape[:3]).cpu()
    if not bool(torch.isfinite(sums).all()):
        return None
    search = _Search(sums, groups, codes)
    search.take_off()
    hubs = search.unknown_rows()
    if len(hubs) > MAX_HUBS:
        return None
    unit = torch.nn.functional.one_hot(hubs, dim)
    search.entries.append(_entries(hubs, products(unit.to(near)).double().cpu()))
    rows, columns, values = (torch.cat(parts) for parts in zip(*search.entries))
    for _ in range(2):
        probe = torch.randn(1, dim, generator=generator, device="cpu")
        wanted = products(probe.to(near)).double().cpu()[0]
        off = torch.zeros(dim, dtype=torch.double, device="cpu").index_add_(0, rows, values * probe[0, columns])
        if not bool(((wanted - off).abs() <= 10 * ROUNDING * (1 + len(hubs)) * search.size)[_not(hubs, dim)].all()):
            return None
    flat = torch.cat([rows * dim + columns, columns * dim + rows]).unique()
    pairs = torch.stack([flat // dim, flat % dim])
    return pairs[:, pairs[0] != pairs[1]]


def _codes(dim: int, generator: torch.Generator) -> Tensor:
    """A number of each latent, and that times its two digits, ``(3, D)``."""
    base, weight = _base(dim), 0.5 + torch.rand(dim, generator=generator, device="cpu")
    at = torch.arange(dim, device="cpu")
    return torch.stack([weight, weight * (1 + at // base) / base, weight * (1 + at % base) / base])


def _base(dim: int) -> int:
    return int(dim**0.5) + 1


def _not(hubs: Tensor, dim: int) -> Tensor:
    mask = torch.ones(dim, dtype=torch.bool, device="cpu")
    mask[hubs] = False
    return mask


def _entries(hubs: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    known = matrix.abs() > ROUNDING * matrix.abs().amax(1, keepdim=True)
    row, column = known.nonzero().T
    return hubs[row], column, matrix[row, column]


class _Search:
    """Takes entries off the sums of groups that have one entry only.

    :param sums: ``(times, groups, 3, D)``, of each row of the Hessian.
    :param groups: of each latent, ``(times, D)``.
    :param codes: ``(3, D)``.
    """

    def __init__(self, sums: Tensor, groups: Tensor, codes: Tensor):
        self.sums, self.groups, self.codes = sums, groups, codes.double()
        self.size = sums[:, :, 0].abs().amax((0, 1))
        self.entries: list[tuple[Tensor, Tensor, Tensor]] = []

    def take_off(self) -> None:
        """Until no group has one entry."""
        for _ in range(20 * len(self.groups)):
            found = [self._alone(time) for time in range(len(self.groups))]
            dim = self.sums.shape[-1]
            rows, columns, values = (torch.cat(parts) for parts in zip(*found))
            flat, first = _first(rows * dim + columns)
            if not len(flat):
                return
            rows, columns, values = rows[first], columns[first], values[first]
            self.entries.append((rows, columns, values))
            for time, group in enumerate(self.groups):
                for code, number in enumerate(self.codes):
                    at = (group[columns], torch.full_like(rows, code), rows)
                    self.sums[time].index_put_(at, -values * number[columns], accumulate=True)

    def _alone(self, time: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and values of entries that are alone in their group."""
        total, high, low = self.sums[time].unbind(1)  # (groups, D)
        group, row = (total.abs() > ROUNDING * self.size).nonzero().T
        base, dim = _base(total.shape[1]), total.shape[1]
        digits = torch.stack([high[group, row], low[group, row]]) / total[group, row] * base - 1
        near = digits.round()
        column = (near[0] * base + near[1]).long().clamp(0, dim - 1)
        good = ((digits - near).abs() < 0.02).all(0) & (near >= 0).all(0) & (near < base).all(0)
        good &= self.groups[time][column] == group
        row, column, value = row[good], column[good], total[group, row][good]
        return row, column, value / self.codes[0, column]

    def unknown_rows(self) -> Tensor:
        """Rows in which something is left, or that have many entries."""
        left = (self.sums[:, :, 0].abs() > ROUNDING * self.size).any(0).any(0)
        return left.nonzero()[:, 0]


def _first(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The different keys, and where each is first."""
    order = keys.argsort(stable=True)
    is_new = torch.ones_like(keys, dtype=torch.bool)
    is_new[1:] = keys[order][1:] != keys[order][:-1]
    return keys[order][is_new], order[is_new]
