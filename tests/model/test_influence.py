"""How much the curvature of a log density depends on each latent."""

import torch

from pyro_nflows.model.influence import MAX_HUBS, influence, influential


def scaled(z):
    """Two scales, each of half of the others."""
    first, second = z[:, 2:].chunk(2, -1)
    return -0.5 * (z[:, 0].exp() * first.square().sum(-1) + z[:, 1].exp() * second.square().sum(-1))


def test_scales_are_found_among_what_they_scale():
    assert influential(scaled, torch.zeros(82)) == (0, 1)


def test_influence_is_the_norm_of_the_hessians_derivative():
    """At the origin, the derivative of the Hessian by the scale is minus the identity of what it scales."""
    found = influence(lambda z: -0.5 * z[:, 0].exp() * z[:, 1:].square().sum(-1), torch.zeros(401))
    assert 250 < float(found[0]) < 1500  # the scales at the points are log-normal, and some are far from one


def test_nothing_stands_out_where_nothing_does():
    assert influential(lambda z: -z.square().sum(-1), torch.zeros(80)) == ()
    assert influential(lambda z: -z.exp().sum(-1), torch.zeros(80)) == ()


def test_there_are_no_more_hubs_than_may_be():
    found = influential(lambda z: -z[:, :20].exp().sum(-1) * z[:, 20:].square().sum(-1), torch.zeros(400))
    assert len(found) == MAX_HUBS
    assert max(found) < 20


def test_points_without_a_density_are_left_out():
    def somewhere(z):
        return torch.where(z[:, 0] > 0.3, torch.nan, 1.0) * scaled(z)

    assert influential(somewhere, torch.zeros(82)) == (0, 1)
    assert influential(lambda z: torch.nan * scaled(z), torch.zeros(82)) == ()
