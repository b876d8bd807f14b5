"""The latents given hubs: where their density is Gaussian, all of it is exact."""

import torch

from pyro_nflows.engine.density_gradient import DensityGradient
from pyro_nflows.model.elimination import Elimination
from pyro_nflows.model.pattern import pattern_of
from pyro_nflows.modes.conditional_modes import ConditionalModes
from pyro_nflows.modes.plate_curvature import root_of
from pyro_nflows.modes.sparse_curvature import SparseCurvature, drawn, log_widths, solved
from pyro_nflows.numerics import quasi_normal

T = 40
Y = torch.randn(T, generator=torch.Generator().manual_seed(0), dtype=torch.double).cumsum(0)


def level(z):
    """A random walk that is seen with noise, and the logarithms of both standard deviations, in the middle."""
    state, noise = z[:, 10, None], z[:, 11, None]
    h = torch.cat([z[:, :10], z[:, 12:]], 1)
    steps = torch.cat([h[:, :1], h[:, 1:] - h[:, :-1]], 1)
    prior = -0.5 * z[:, 10:12].square().sum(1)
    fit = -0.5 * ((steps / state.exp()).square() + 2 * state + ((Y - h) / noise.exp()).square() + 2 * noise).sum(1)
    return prior + fit


def precision_and_shift(state, noise):
    """Of the walk given both, by linear algebra."""
    steps = torch.eye(T, dtype=torch.double) - torch.eye(T, dtype=torch.double).roll(1, 0).tril(-1)
    precision = steps.T @ steps * (-2 * state).exp() + torch.eye(T, dtype=torch.double) * (-2 * noise).exp()
    return precision, Y * (-2 * noise).exp()


def modes(log_joint=level):
    near = torch.zeros(T + 2, dtype=torch.double)
    pattern = pattern_of(level, near)
    assert pattern is not None
    assert pattern.hubs.tolist() == [10, 11]

    def begin(hubs):
        z = near.expand(len(hubs), -1).clone()
        z[:, pattern.hubs] = hubs
        return z

    among = Elimination.of(pattern.without_hubs())
    return ConditionalModes(DensityGradient(log_joint), pattern, among, begin)


HUBS = torch.tensor([[0.0, 0.0], [-2.0, 0.5], [1.0, -1.5]], dtype=torch.double)


def test_of_a_gaussian_the_mode_the_factor_and_the_marginal_are_exact():
    finder = modes()
    given = finder.at(HUBS)
    constants = []
    for row, (state, noise) in enumerate(HUBS):
        precision, shift = precision_and_shift(state, noise)
        mean = torch.linalg.solve(precision, shift)
        assert torch.allclose(given.loc[row], mean, atol=1e-8)
        exact = level(torch.cat([mean[:10], HUBS[row], mean[10:]])[None])[0] - 0.5 * torch.logdet(precision)
        constants.append(given.log_marginal[row] - exact)
        x = torch.eye(T, dtype=torch.double)
        its = given.of(torch.full((T,), row)).nodes
        factor = drawn(finder.among, its, x).T
        assert torch.allclose(factor @ factor.T, torch.linalg.inv(precision), atol=1e-8)
        assert torch.allclose(solved(finder.among, its, x), torch.linalg.inv(precision), atol=1e-8)
        assert torch.allclose(log_widths(finder.among, its)[0].sum(), -0.5 * torch.logdet(precision))
    assert torch.allclose(torch.stack(constants), torch.zeros(3, dtype=torch.double), atol=1e-8)


def test_steps_of_newton_find_the_mode_of_what_is_no_gaussian():
    finder = modes(counts)
    given = finder.at(HUBS)
    z = torch.zeros(3, T + 2, dtype=torch.double)
    z[:, finder.hubs], z[:, finder.rest] = HUBS, given.loc
    _, grad, products = DensityGradient(counts).curvatures(z, finder._rows)
    left = torch.linalg.vector_norm(grad[:, finder.rest], dim=1)
    assert bool((left < 1e-3 * products.abs().amax((1, 2))).all())


def counts(z):
    """The walk seen as counts, too."""
    h = torch.cat([z[:, :10], z[:, 12:]], 1) - Y
    return level(z) + 3 * (h - h.exp()).sum(1)


def test_gaussians_at_the_means_have_next_to_no_gradient_on_average():
    finder = modes(counts)
    noise = quasi_normal(3, T, 0)
    laplace = finder.at(HUBS)
    given = finder.at_means(laplace, noise, torch.ones(3))
    assert not torch.equal(given.loc, laplace.loc)
    x = quasi_normal(4096, T, 1)

    def gradient(which, row):
        its = which.of(torch.full((len(x),), row))
        z = torch.zeros(len(x), T + 2, dtype=torch.double)
        z[:, finder.hubs], z[:, finder.rest] = HUBS[row], finder.draws(its, x)
        slope = finder.density.values_and_grads(z)[1][:, finder.rest].mean(0)
        return torch.linalg.vector_norm(
            slope * finder.curvature.variances(finder.curvature.covariances(which.nodes))[row].sqrt()
        )

    for row in range(3):
        assert gradient(given, row) < 0.2 * gradient(laplace, row)


def test_where_all_is_gaussian_the_mean_is_the_mode():
    finder = modes()
    laplace = finder.at(HUBS)
    given = finder.at_means(laplace, quasi_normal(3, T, 0), torch.ones(3))
    assert torch.allclose(given.loc, laplace.loc, atol=1e-6)


def test_covariances_are_those_of_the_inverse_wherever_the_hessian_has_numbers():
    finder = modes()
    found = finder.curvature.covariances(finder.at(HUBS).nodes)
    variances, (v, w) = finder.curvature.variances(found), finder.curvature.summands(found)
    sums = torch.einsum("ncj,nck->njk", v, w)
    for row, hubs in enumerate(HUBS):
        precision, _ = precision_and_shift(*hubs)
        covariance = torch.linalg.inv(precision)
        assert torch.allclose(variances[row], covariance.diagonal(), atol=1e-8)
        assert torch.allclose(sums[row][precision != 0], covariance[precision != 0], atol=1e-8)
        assert bool((w[row].abs() <= 1.0001 * covariance.diagonal().sqrt()).all())


def test_means_of_sums_of_latents_are_right_too():
    """Counts whose log rates are a walk plus a level that all of a kind share: third derivatives are not diagonal."""

    def summed(z):
        h, level_of = torch.cat([z[:, :10], z[:, 12:]], 1), z[:, 10:12]
        rate = h[:, 3:] + 0.7 * h[:, :1]
        prior = -0.5 * ((h[:, 1:] - h[:, :-1]).square().sum(1) + h.square().sum(1) + level_of.square().sum(1))
        return prior + (1.5 * rate - rate.exp()).sum(1) - 0.1 * (level_of[:, :1] * h).square().sum(1)

    near = torch.zeros(T + 2, dtype=torch.double)
    pattern = pattern_of(summed, near)
    assert pattern is not None
    among = Elimination.of(pattern.without_hubs())
    finder = ConditionalModes(DensityGradient(summed), pattern, among, lambda hubs: near.expand(len(hubs), -1).clone())
    num = len(pattern.hubs)
    laplace = finder.at(torch.zeros(1, num, dtype=torch.double))
    given = finder.at_means(laplace, quasi_normal(1, len(pattern.others), 0), torch.ones(1))
    x = quasi_normal(4096, len(pattern.others), 1)

    def gradient(which):
        z = torch.zeros(len(x), T + 2, dtype=torch.double)
        z[:, finder.rest] = finder.draws(which.of(torch.zeros(len(x)).long()), x)
        slope = finder.density.values_and_grads(z)[1][:, finder.rest].mean(0)
        return torch.linalg.vector_norm(slope)

    assert gradient(given) < 0.25 * gradient(laplace)


def test_gaussians_that_draws_say_are_farther_are_not_taken(monkeypatch):
    finder = modes(counts)
    laplace, noise = finder.at(HUBS), quasi_normal(3, T, 0)
    for sign in (1.0, -1.0):

        def bounds(given, *_, sign=sign):
            return sign * (given.loc - laplace.loc).square().sum(1)

        monkeypatch.setattr(finder, "_bounds", bounds)
        is_moved = not torch.equal(finder.at_means(laplace, noise, torch.ones(3)).loc, laplace.loc)
        assert is_moved == (sign > 0)


def test_where_derivatives_are_not_finite_the_mode_stays():
    def kinked(z):
        """Not finite a standard deviation away from the mode, where averages would be taken."""
        h = torch.cat([z[:, :10], z[:, 12:]], 1)
        return torch.where((h - Y).square().sum(1) > 1e-3, torch.nan, level(z))

    laplace = modes().at(HUBS)
    given = modes(kinked).at_means(laplace, quasi_normal(3, T, 0), torch.ones(3))
    assert torch.equal(given.loc, laplace.loc)


def test_where_there_is_no_mode_nothing_is_found():
    given = modes(lambda z: torch.where(z[:, 10] < -1, torch.nan, level(z)[:])).at(HUBS)
    assert given.log_marginal.isfinite().tolist() == [True, False, True]


def test_values_are_chosen_and_joined():
    given = modes().at(HUBS)
    both = given.of(torch.tensor([2])).and_of(given.of(torch.tensor([True, True, False])))
    assert torch.equal(both.hubs, HUBS[[2, 0, 1]])
    assert torch.equal(both.nodes[0][0], given.nodes[0][0][[2, 0, 1]])


def test_hessians_are_read_and_factored_many_at_a_time():
    curvature = SparseCurvature(modes().among)
    matrices = torch.stack([precision_and_shift(*row)[0] for row in HUBS])
    products = curvature.probes().double() @ matrices
    many = curvature.factors(curvature.read(products))
    for row in range(len(HUBS)):
        one = curvature.factors(curvature.read(products[row]))
        for (root, slope), (its_root, its_slope) in zip(many, one):
            assert torch.allclose(root[row], its_root)
            assert torch.allclose(slope[row], its_slope)


def test_one_matrix_that_is_no_use_spoils_no_other():
    """One where a curvature is next to nothing, and others that are not finite."""
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    tiny = torch.tensor([[1e-300, 1.0], [1.0, 1.0]]).double()
    many = torch.stack([good, tiny, good * torch.nan, good * torch.inf])
    roots = root_of(many)
    assert torch.equal(roots[0], root_of(good[None])[0])
    assert torch.allclose(roots[0] @ roots[0].mT, torch.linalg.inv(good))
