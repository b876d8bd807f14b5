r"""Leave-one-group-out, with the latents of each group integrated out.

With :math:`g` what is outside of a plate, and draws :math:`g_s` of its posterior with weights :math:`w_s`,

.. math:: p(y_i \mid y_{-i}) = \frac{\sum_s r_{si}\, p(y_i \mid g_s)}{\sum_s r_{si}}, \qquad
          r_{si} = \frac{w_s}{p(y_i \mid g_s)}, \qquad
          p(y_i \mid g) = \int p(y_i \mid z_i, g)\, p(z_i \mid g)\, dz_i ,

the :math:`r_{si}` Pareto-smoothed [1]. The group's own latents are no part of the weights: with them, the weights of a
group of many observations would be those of a point far in the tail. The integral is over importance draws of
:math:`z_i` from a Gaussian whose mean is linear in :math:`g`, and a wider one [2].

**References**

[1] A. Vehtari, A. Gelman, J. Gabry (2017). Practical Bayesian model evaluation using leave-one-out cross-validation
and WAIC.

[2] E. C. Merkle, D. Furr, S. Rabe-Hesketh (2019). Bayesian Comparison of Latent Variable Models: Conditional Versus
Marginal Likelihoods.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..diagnostics.groups import GroupsLeftOut
from ..model.group_terms import GroupTerms, owner_of
from ..model.hierarchy import Hierarchy
from ..model.log_joint import LogJoint
from ..model.row_terms import RowTerms
from ..model.rows import Rows
from ..numerics import standard_normal_log_prob

#: Points for each integral, in pairs of opposite ones; how many of them, and how much wider, the wider Gaussian has.
NUM_POINTS, NUM_WIDE, WIDER = 32, 8, 2.0
#: What a covariance is raised by, as a share of its diagonal.
RAISED = 1e-6
#: Numbers of latents that go through the model at once.
AT_ONCE = 2**20


class Part(NamedTuple):
    """Some rows of a plate, and what makes of their latents, and of what is outside, the rows' parts of the log joint.

    :param rows: their numbers; of the density's rows, the first ones.
    :param columns: where a flat latent of all rows holds what ``density`` takes.
    :param owner: of each of these, which of the rows it is of; -1 for what is outside.
    :param density: from ``(K, len(columns))`` to ``(K, len(rows))``.
    :param proposal: from draws ``(S, len(columns))`` to where each row's latents are given the rest of a draw,
        ``(S, rows, r)``, and roots of covariances; by default found from all draws.
    """

    rows: Tensor
    columns: Tensor
    owner: Tensor
    density: Callable[[Tensor], Tensor]
    proposal: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


def whole_parts(plate: str, joint: LogJoint) -> Iterator[Part]:
    """All rows of a plate at once, of a model that has them in each run.

    :raises ValueError: if there is no such plate, or its rows are not independent given what is outside.
    """
    joint.look()
    if joint.enumerates:
        raise ValueError(
            "leave_one_group_out: the model has enumerated sites, which are not summed out of single groups"
        )
    terms = GroupTerms("leave_one_group_out", joint, plate)
    check_independent(terms)
    yield Part(torch.arange(terms.num_rows), torch.arange(joint.latents.dim), terms.owner, lambda z: terms(z)[1])


def row_parts(plate: str, terms: RowTerms, whole: Hierarchy) -> Iterator[Part]:
    """The rows of a subsampled plate, minibatch after minibatch.

    :param whole: the hierarchy of all rows.
    :raises ValueError: if it is another plate.
    """
    if plate != terms.plate:
        raise ValueError(
            f"leave_one_group_out: this fit is by minibatches of plate '{terms.plate}', so it leaves out rows of that "
            f"plate only, got {plate!r}"
        )
    owner = owner_of(terms.joint.latents, plate)
    for start in range(0, terms.num_rows, terms.size):
        numbers = torch.arange(start, start + terms.size) % terms.num_rows
        terms.choose(numbers)
        num = min(terms.size, terms.num_rows - start)
        part = Part(numbers, Rows.of(whole, {plate: numbers}).columns, owner, lambda z: terms(z)[1])
        yield part if num == terms.size else part._replace(rows=numbers[:num])


def check_independent(terms: GroupTerms) -> None:
    """Refuse rows that are tied together, or to data outside of the plate: no row has a likelihood of its own.

    :raises ValueError: if the parts of some rows change with the latents of others.
    """
    joint, owner = terms.joint, terms.owner
    start = joint.latents.init_loc() if joint.start is None else joint.start
    odd = (owner >= 0) & (owner % 2 == 1)
    moved = torch.where(odd, start + 0.1 * torch.rand_like(start), start)
    (outside, rows), (other, changed) = (terms(z[None]) for z in (start, moved))
    same = torch.allclose(rows[:, ::2], changed[:, ::2], equal_nan=True) and torch.allclose(outside, other)
    if not same:
        raise ValueError(
            f"leave_one_group_out: rows of plate '{terms.plate}' depend on each other given what is outside, or data "
            "outside of the plate depend on them, so that no row has data of its own"
        )


@torch.no_grad()
def groups_left_out(plate: str, parts: Iterator[Part], z: Tensor, log_weight: Tensor, doubt: str = "") -> GroupsLeftOut:
    """The table for the rows of a plate.

    :param plate: its name.
    :param parts: all of its rows, each once.
    :param z: draws, ``(S, D)``.
    :param log_weight: of them.
    :param doubt: what the verdict says of them, where it does not trust them.
    """
    keep = torch.isfinite(log_weight)
    z, log_weight = z[keep], log_weight[keep]
    found = [(part.rows, *_integrated(part, z[:, part.columns])) for part in parts]
    found = [(rows, log_p[:, : len(rows)], ess[: len(rows)]) for rows, log_p, ess in found]
    order = torch.cat([rows for rows, _, _ in found]).argsort()
    each = torch.cat([log_p for _, log_p, _ in found], 1)[:, order]
    return GroupsLeftOut.of(plate, each, log_weight, torch.cat([ess for _, _, ess in found])[order], doubt)


def _integrated(part: Part, z: Tensor) -> tuple[Tensor, Tensor]:
    """The log likelihood of each row given what is outside, ``(S, rows)``, and the ESS of its points on average."""
    num, inside = int(part.owner.max()) + 1 if bool((part.owner >= 0).any()) else len(part.rows), part.owner >= 0
    if not inside.any():
        return _blocks(part.density, z).double(), torch.ones(num, dtype=torch.float64)
    places = inside.nonzero()[:, 0]
    places = places[part.owner[places].argsort(stable=True)].view(num, -1)
    if part.proposal is None:
        mean, root = _proposal(z[:, ~inside].double(), z[:, places].double())
    else:
        mean, root = part.proposal(z)
    log_det, shape = root.diagonal(dim1=-2, dim2=-1).log().sum(-1), (len(z), *places.shape)
    total = torch.full((2, len(z), num), -math.inf, dtype=torch.float64)
    half = NUM_POINTS // 2
    for number in range(half):
        scale = WIDER if number < NUM_WIDE // 2 else 1.0
        e = scale * torch.randn(shape, dtype=torch.float64)
        log_q = _log_mixture(e) - log_det
        for sign in (1, -1):
            point = z.clone()
            point[:, places] = (mean + sign * (root @ e[..., None])[..., 0]).to(z)
            value = _blocks(part.density, point).double() - log_q
            total[0] = torch.logaddexp(total[0], value)
            total[1] = torch.logaddexp(total[1], 2 * value)
    ess = (2 * total[0] - total[1]).exp() / NUM_POINTS
    return total[0] - math.log(NUM_POINTS), ess.nan_to_num(0.0).mean(0)


def _proposal(outside: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each row's latents as a linear function of what is outside, and a root of the covariance left.

    :param outside: draws, ``(S, G)``.
    :param rows: draws, ``(S, rows, r)``.
    """
    x = torch.cat([torch.ones_like(outside[:, :1]), outside - outside.mean(0)], 1)
    square = x.T @ x
    square = square + RAISED * square.diagonal().mean() * torch.eye(len(square)).to(square)
    mean = (x @ torch.linalg.solve(square, x.T @ rows.flatten(1))).view(rows.shape)
    away = rows - mean
    covariance = torch.einsum("sir,siq->irq", away, away) / max(1, len(x) - x.shape[1])
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    return mean, torch.linalg.cholesky(covariance + torch.diag_embed(RAISED * diagonal + 1e-30))


def _log_mixture(e: Tensor) -> Tensor:
    """Of whitened points, the density of the mixture that all of them together are drawn from."""
    share, width = NUM_WIDE / NUM_POINTS, e.shape[-1]
    narrow = standard_normal_log_prob(e) + math.log(1 - share)
    return torch.logaddexp(narrow, standard_normal_log_prob(e / WIDER) - width * math.log(WIDER) + math.log(share))


def _blocks(density: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return torch.cat([density(part) for part in z.split(max(1, AT_ONCE // max(1, z.shape[1])))])
