"""Side by side with other libraries: given the same numbers, their flows are the same density as ours."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from benchmarks.peer_flows import LIBRARIES
from benchmarks.peer_parts import Peer, networks, same_scale, share_start, steps_of
from benchmarks.peers import peers_of, trained
from pyro_nflows.nets.mlp import MLP

DIM, LAYERS, WIDTH = 6, 4, 8


@pytest.fixture
def made(monkeypatch):
    """The flow of a library; zuko turns off the validation of distributions, which is put back."""
    monkeypatch.setattr(Distribution, "_validate_args", Distribution._validate_args)

    def make(library: str, name: str) -> Peer:
        if library != "pyro_nflows":
            pytest.importorskip(library)
        peer = same_scale(LIBRARIES[library][name](DIM, LAYERS, WIDTH))
        getattr(peer.module, "initialize", peer.log_prob)(points(300))
        return peer

    return make


def points(num: int) -> Tensor:
    return torch.randn(num, DIM, generator=torch.Generator().manual_seed(num)) * torch.arange(1, DIM + 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["zuko", "nflows", "normflows"])
@pytest.mark.parametrize("name", ["RealNVP", "spline", "Glow"])
def test_a_peer_given_our_numbers_is_our_density(made, library, name):
    if name not in LIBRARIES[library]:
        pytest.skip("zuko has no Glow")
    peers = {made_by: made(made_by, name) for made_by in ("pyro_nflows", library)}
    share_start(peers)
    ours, peer = peers.values()
    # An affine coupling's parameters are (shift, log-scale) for each coordinate, of the map from the base to the data;
    # the others go from the data to the base, and nflows has all shifts before all log-scales.
    affine = name != "spline"
    with torch.no_grad():
        mine = [part for part in ours.module.modules() if isinstance(part, MLP)]
        for net, (*_, head) in zip(mine, networks(peer, library), strict=True):
            net.head.normal_(0, 0.05)
            order = torch.arange(len(net.head))
            order = order.view(-1, 2).T.flatten() if affine and library == "nflows" else order
            head.weight.add_((-1 if affine else 1) * net.head[order])
        x = points(500)
        peer.module.eval()
        expected, found = ours.log_prob(x), peer.log_prob(x)
    # What is left: soft bounds of log-scales, and the least width and slope of bins.
    assert (found - expected).std() < (0.05 if library == "zuko" else 1e-3) * expected.std()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["zuko", "nflows", "normflows"])
def test_a_peers_maf_starts_where_ours_does_and_has_as_many_parameters(made, library):
    ours, peer, x = made("pyro_nflows", "MAF"), made(library, "MAF"), torch.randn(50, DIM)
    torch.testing.assert_close(peer.log_prob(x), ours.log_prob(x))
    assert peer.num_params == ours.num_params


@pytest.mark.filterwarnings("ignore")
def test_mafs_of_nflows_and_normflows_given_the_same_numbers_are_the_same_density(made):
    peers, x = [made(library, "MAF") for library in ("nflows", "normflows")], points(500)
    masked = [
        [net for net in peer.module.modules() if hasattr(net, "final_layer") and hasattr(net, "initial_layer")]
        for peer in peers
    ]
    with torch.no_grad():
        for one, other in zip(masked[0], reversed(masked[1]), strict=True):
            one.final_layer.weight.normal_(0, 0.1)
            other.load_state_dict(one.state_dict())
        expected, found = (peer.log_prob(x) for peer in peers)
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore")
def test_peers_start_alike_and_learn_alike(monkeypatch):
    monkeypatch.setattr(Distribution, "_validate_args", Distribution._validate_args)
    for library in ("zuko", "nflows", "normflows"):
        pytest.importorskip(library)
    peers = peers_of("RealNVP", 2, 2, 8, seed=0)
    values = {library: trained(peer, 2, 0, 20).mean().item() for library, peer in peers.items()}
    start = trained(peers_of("RealNVP", 2, 2, 8, seed=0)["pyro_nflows"], 2, 0, 0).mean().item()
    assert values["pyro_nflows"] > start + 0.03
    assert values == pytest.approx(
        dict.fromkeys(peers, values["pyro_nflows"]), abs=1e-3
    )  # zuko bounds log-scales otherwise


def test_the_steps_are_those_of_the_flow_from_the_data_to_the_base():
    steps = steps_of(DIM, LAYERS)
    assert [flip for _, flip in steps] == [True, False, True, False]
    assert [order is not None for order, _ in steps] == [True, False, True, False]
