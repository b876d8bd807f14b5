"""Subsampled plates: all rows' latents from one run's, chosen rows' from those, and runs with chosen rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_nflows.model.all_rows import all_rows, on_rows
from pyro_nflows.model.bound import BoundModel
from pyro_nflows.model.hierarchy import Hierarchy
from pyro_nflows.model.latents import Latents
from pyro_nflows.model.log_joint import LogJoint
from pyro_nflows.model.rows import Rows
from pyro_nflows.model.subsample import Chosen, look, rows_of

ROWS = {"groups": torch.tensor([6, 0, 3])}


def nested(size=3):
    """Seven groups, of which a run has three, with a simplex each, and two members each."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("groups", 7, subsample_size=size, dim=-2):
        scale = pyro.sample("scale", dist.LogNormal(mu[0], 1.0))
        pyro.sample("mix", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("members", 2, dim=-1):
            pyro.sample("z", dist.Normal(mu[1], scale))


def seen(model, *args):
    return Latents.of("test", pyro.poutine.trace(model).get_trace(*args))


def test_all_rows_have_the_shapes_that_a_run_without_subsampling_has():
    whole, plain = all_rows(seen(nested)), seen(nested, 7)
    assert whole.shapes == plain.shapes
    assert whole.value_shapes == plain.value_shapes
    assert whole.dim == plain.dim == len(whole.init_loc())
    z = torch.randn(4, whole.dim)
    for name, values in whole.constrain(z).items():
        assert torch.equal(values, plain.constrain(z)[name])
    assert Hierarchy.of(whole).order.tolist() == Hierarchy.of(plain).order.tolist()
    assert Hierarchy.of(whole).subsampled == ("groups",)
    assert all_rows(plain) is plain


def test_chosen_rows_have_the_shapes_of_a_run_and_their_places_among_all():
    whole = all_rows(seen(nested))
    few, rows = on_rows(whole, ROWS), Rows.of(Hierarchy.of(whole), ROWS)
    assert few.shapes == seen(nested).shapes
    z = torch.randn(whole.dim)
    parts, taken = whole.unpack(z), few.unpack(z[rows.columns])
    assert torch.equal(taken["mu"], parts["mu"])
    for name in ("scale", "mix", "z"):
        assert torch.equal(taken[name], parts[name][ROWS["groups"]])
    small = Hierarchy.of(few)
    assert torch.equal(small.order, rows.hierarchy.order)
    for ours, block in zip(rows.hierarchy.blocks, small.blocks):
        assert torch.equal(ours.columns, block.columns)
    assert torch.equal(rows.hierarchy.blocks[1].above[0].row, small.blocks[1].above[0].row)
    for number, block in zip(rows.numbers, Hierarchy.of(whole).blocks):
        small_block = rows.hierarchy.blocks[len(block.plates) - 1]
        assert torch.equal(rows.columns[small_block.columns], block.columns[number])


def test_centering_of_all_rows_is_taken_row_by_row():
    run = seen(nested)
    number = torch.arange(7.0).reshape(7, 1) / 10
    whole = all_rows(run).centered({"scale": number, "z": torch.tensor(0.5)})
    few = on_rows(whole, ROWS)
    assert torch.equal(few.centering["scale"], number[ROWS["groups"]])
    assert float(few.centering["z"]) == 0.5
    first = run.centered({"scale": number[:3], "z": torch.tensor(0.5)})
    start = whole.unpack(whole.init_loc())
    for name, part in first.unpack(first.init_loc()).items():
        assert torch.allclose(start[name][:3] if name != "mu" else start[name], part)


def test_bounds_of_rows_are_followed():
    def model():
        with pyro.plate("groups", 7, subsample_size=3) as index:
            pyro.sample("p", dist.Uniform(0.0, 1.0 + index.double()))
            pyro.sample("s", dist.HalfNormal(1.0))

    assert all_rows(seen(model)).moving == {"p"}


@pytest.mark.parametrize("as_argument", [False, True])
def test_a_model_runs_with_chosen_rows(as_argument):
    data = torch.arange(7.0)

    def model(index=None):
        size = None if as_argument else 3
        with pyro.plate("groups", 7, subsample=index, subsample_size=size) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=data[rows])

    args = (ROWS["groups"],) if as_argument else ()
    trace = pyro.poutine.trace(Chosen("test", ROWS)(model)).get_trace(*args)
    assert torch.equal(rows_of(trace)["groups"], ROWS["groups"])
    assert trace.nodes["y"]["value"].tolist() == [6.0, 0.0, 3.0]
    assert float(trace.nodes["z"]["scale"]) == pytest.approx(7 / 3)


def test_rows_that_a_model_cannot_have_are_refused():
    def model(index):
        pyro.plate("groups", 7, subsample=index)

    with pytest.raises(ValueError, match=r"plate 'groups' has subsample_size=3 .* and is to have 7 rows"):
        Chosen("test", {"groups": torch.arange(7)})(nested)()
    with pytest.raises(ValueError, match="gives plate 'groups' its rows by subsample="):
        Chosen("test", ROWS)(model)(torch.arange(3))


def test_a_look_at_a_model_draws_no_latents_and_has_any_number_of_rows():
    run = seen(nested)
    sites = {name: latent.site for name, latent in run.sites.items()}
    trace = look(BoundModel(nested, (5,)), sites)
    assert trace.nodes["z"]["value"].shape == (5, 2)
    assert len(rows_of(trace)["groups"]) == 5
    assert torch.equal(trace.nodes["mu"]["value"], run.sites["mu"].site["value"])


def test_the_log_joint_of_chosen_rows_is_that_of_a_run_with_them():
    """Over all minibatches of one row, the mean of the log density is that of all rows."""

    def model(size):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 4, subsample_size=size) as index:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor([0.0, 2.0, -1.0, 4.0])[index])

    whole = all_rows(seen(model, 1))
    z, found = torch.randn(whole.dim), []
    for row in range(4):
        chosen = {"groups": torch.tensor([row])}
        few, rows = on_rows(whole, chosen), Rows.of(Hierarchy.of(whole), chosen)
        joint = LogJoint(BoundModel(Chosen("test", chosen)(model), (1,)), few)
        found.append(joint(z[rows.columns][None])[0])
    plain = LogJoint(BoundModel(model, (4,)), seen(model, 4))
    assert torch.allclose(torch.stack(found).mean(), plain(z[None])[0], atol=1e-5)
