"""A model's latents as a value: one flat vector, its pieces, and the way back."""

import copy
import dataclasses
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal

from pyro_nflows import AutoFlow
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.latents import Latents
from pyro_nflows.model.log_joint import LogJoint


def several(high: Any = 1.0) -> None:
    pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1):
        pyro.sample("weights", dist.Dirichlet(torch.ones(4)))
    pyro.sample("low", dist.Uniform(0.0, high))
    pyro.sample("factor", dist.LKJCholesky(3, 2.0))


def latents_of(model: Any = several, *args: Any) -> Latents:
    return Latents.of("demo", poutine.trace(model).get_trace(*args))


def test_the_flat_vector_holds_the_sites_one_after_the_other() -> None:
    latents = latents_of()
    assert latents.names == ["scale", "weights", "low", "factor"]
    assert latents.shapes == {"scale": (), "weights": (3, 2, 3), "low": (), "factor": (3,)}
    assert latents.value_shapes == {"scale": (), "weights": (3, 2, 4), "low": (), "factor": (3, 3)}
    assert [latent.columns for latent in latents.sites.values()] == [
        slice(0, 1),
        slice(1, 19),
        slice(19, 20),
        slice(20, 23),
    ]
    assert latents.dim == 23
    assert [frame.name for frame in latents.sites["weights"].plates] == ["rows", "columns"]
    assert latents.sites["factor"].event_dim == 2


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_packing_undoes_unpacking(batch: tuple[int, ...]) -> None:
    latents = latents_of()
    z = torch.randn(*batch, latents.dim)
    parts = latents.unpack(z)
    assert {name: part.shape for name, part in parts.items()} == {n: batch + s for n, s in latents.shapes.items()}
    assert torch.equal(latents.pack(parts), z)
    assert torch.equal(parts["low"], z[..., latents.sites["low"].columns].squeeze(-1))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_unconstraining_undoes_constraining_and_has_its_log_determinant(batch: tuple[int, ...]) -> None:
    latents = latents_of()
    z = torch.randn(*batch, latents.dim)
    values = latents.constrain(z)
    assert {name: value.shape for name, value in values.items()} == {
        n: batch + s for n, s in latents.value_shapes.items()
    }
    back, log_det = latents.unconstrain(values)
    torch.testing.assert_close(back, z)
    total = torch.zeros(batch)
    for name, part in latents.unpack(z).items():
        step = latents.sites[name].transform.log_abs_det_jacobian(part, values[name])
        total = total + step.reshape(*batch, -1).sum(-1)
    torch.testing.assert_close(log_det, total)


def test_along_plates_the_pieces_are_those_of_pyros_guides() -> None:
    latents, guide = latents_of(), AutoDiagonalNormal(several)
    guide()
    for shape in [(), (5, 1, 1)]:
        z = torch.randn(*shape, latents.dim)
        parts = latents.unpack_in_plates(z)
        assert list(parts) == latents.names
        for site, part in guide._unpack_latent(z):
            assert torch.equal(parts[site["name"]], part)


def test_the_start_is_the_values_of_the_trace() -> None:
    latents = latents_of()
    values = latents.constrain(latents.init_loc())
    for name, latent in latents.sites.items():
        torch.testing.assert_close(values[name], latent.site["value"])


def test_it_holds_neither_gradients_nor_data_nor_arguments() -> None:
    def model(data: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.5))
        z = pyro.sample("z", dist.Normal(loc, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=data)

    data = torch.randn(10_000)
    latents = latents_of(model, data)
    assert latents.names == ["z"]
    assert not latents.init_loc().requires_grad
    assert not latents.sites["z"].site["fn"].log_prob(torch.zeros(2)).requires_grad
    assert len(pickle.dumps(latents)) < data.nbytes
    for copied in (copy.deepcopy(latents), pickle.loads(pickle.dumps(latents))):
        assert copied.shapes == latents.shapes
        assert torch.equal(copied.init_loc(), latents.init_loc())


def test_it_does_not_change_and_what_is_found_later_makes_a_new_one() -> None:
    latents = latents_of()
    with pytest.raises(dataclasses.FrozenInstanceError):
        latents.moving = frozenset({"low"})  # type: ignore[misc]
    assert latents.following(frozenset(), {}) is latents
    later = latents.following(frozenset({"low"}), {"scale": False})
    assert (later.moving, later.filled) == ({"low"}, {"scale": False})
    assert (latents.moving, latents.filled) == (frozenset(), {})
    assert later.sites is latents.sites


def test_a_log_joint_keeps_what_it_finds_to_itself() -> None:
    guide = AutoFlow(several)
    guide(torch.tensor(1.0))
    assert guide.latents.moving == {"low"}
    fixed = latents_of(several, 1.0)
    joint = LogJoint(BoundModel(several, (2.0,)), fixed)
    joint.prepare()  # another number than at first
    assert joint.latents.moving == {"low"}
    assert fixed.moving == frozenset()


def test_a_trace_without_bijection_is_refused_by_name() -> None:
    def model() -> None:
        pyro.sample("angle", dist.ProjectedNormal(torch.ones(2)))

    with pytest.raises(ValueError, match=r"demo: latent site 'angle' has support .*no bijection from real vectors"):
        latents_of(model)
