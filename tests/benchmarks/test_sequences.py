"""The benchmark of sequences: its densities are exact."""

import itertools

import torch
from torch.distributions import MultivariateNormal, Normal

from benchmarks import sequences


def test_the_density_of_regimes_is_the_sum_over_all_their_paths() -> None:
    x = torch.randn(5, 4)
    past = torch.nn.functional.pad(x, (1, 0))[:, :-1]
    total = torch.zeros(5)
    for path in itertools.product((0, 1), repeat=4):
        changes = sum(a != b for a, b in itertools.pairwise(path))
        prior = 0.5 * sequences.CHANGE**changes * (1 - sequences.CHANGE) ** (3 - changes)
        coefficient, sd = torch.tensor([sequences.REGIMES[state] for state in path]).unbind(-1)
        total = total + prior * Normal(coefficient * past, sd).log_prob(x).sum(-1).exp()
    torch.testing.assert_close(sequences.switching_log_prob(x), total.log())


def test_the_density_of_second_order_is_gaussian() -> None:
    """Its covariance is that of noise, through the inverse of the map from series to noise."""
    x = torch.randn(3, 5)
    to_noise = torch.eye(5) - 0.5 * torch.diag(torch.ones(4), -1) - 0.3 * torch.diag(torch.ones(3), -2)
    expected = MultivariateNormal(torch.zeros(5), precision_matrix=to_noise.T @ to_noise).log_prob(x)
    torch.testing.assert_close(sequences.second_order_log_prob(x), expected, rtol=1e-4, atol=1e-4)


def test_an_exact_flow_has_no_excess() -> None:
    process = sequences.PROCESSES["AR(2)"]
    flow = sequences.flows.wavenet((6, 1), 1, 4, (1,), inverted=True)
    net = flow[0].layer.net
    with torch.no_grad():
        net.skip[0] = torch.tensor([-0.5, -0.3])  # the shift is added to the series, whose noise is left
    gap = sequences.excess(flow, process, process.draw(8, 6))
    torch.testing.assert_close(gap, torch.zeros(8), rtol=0, atol=1e-5)
