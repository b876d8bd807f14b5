"""Minibatches that a ``DataLoader`` gives: the same posterior as from all data, and mistakes told in words."""

import itertools
import pickle
import tempfile
import weakref
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from pyro_nflows import VI, AutoFlow
from pyro_nflows.inference.loader import of_minibatches
from pyro_nflows.inference.resume import described
from pyro_nflows.system.mapped import mapped

NUM = 100
OPTIONS = {"num_steps": 20, "engine": "traced", "progress_bar": False, "seed": 0}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(NUM, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + noise


def regression(x: Tensor, y: Tensor, scale: float = 1.0) -> None:
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
    with pyro.plate("data", NUM, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(x @ w, scale), obs=y)


def groups(index: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
    with pyro.plate("groups", NUM, subsample=index):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def loader(*tensors: Tensor, size: int = 30, **options) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=size, **{"shuffle": True, **options})


def check(vi: VI) -> None:
    """Against the exact posterior."""
    x, y = data()
    covariance = torch.linalg.inv(x.T @ x + torch.eye(2) / 4)
    draws, num = vi.get_samples(4000)["w"], 4000
    sd = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - covariance @ x.T @ y).abs() < 5 * sd / num**0.5).all()
    assert ((draws.std(0) / sd - 1).abs() < 5 / (2 * num) ** 0.5).all()


@pytest.fixture(scope="module")
def fitted() -> VI:
    return VI(AutoFlow(regression), **OPTIONS).run(minibatches=loader(*data()))


def test_the_posterior_is_that_of_all_rows(fitted):
    check(fitted)
    assert "over all 100 rows of plate 'data'" in fitted.verdict().sentence


def test_the_guide_is_still_one_of_minibatches(fitted):
    x, y = data()
    assert fitted.guide(x[:7], y[:7])["w"].shape == (2,)
    assert torch.allclose(fitted.guide.median()["w"], fitted.get_samples(4000)["w"].median(0).values, atol=0.05)


def test_predictions_are_of_the_rows_that_are_given(fitted):
    x, y = data()
    new = torch.tensor([[100.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    covariance = torch.linalg.inv(x.T @ x + torch.eye(2) / 4)
    found = fitted.predict(new, None, num_samples=4000, seed=0)["y"].mean(0)
    sd = (1e4 * covariance.diagonal() + 1).sqrt()
    assert ((found - 100 * covariance @ x.T @ y).abs() < 5 * sd / 4000**0.5).all()


def test_it_is_saved_and_loaded_with_its_minibatches(fitted, tmp_path):
    fitted.save(tmp_path / "fit.pt")
    again = VI.load(tmp_path / "fit.pt", AutoFlow(regression), minibatches=loader(*data()))
    assert torch.equal(again.log_weight, fitted.log_weight)
    num = len(fitted.log_weight)
    assert abs(float(again.posterior.with_draws(num + 500).log_weight[num:].mean() - fitted.log_weight.mean())) < 0.1
    assert torch.equal(pickle.loads(pickle.dumps(fitted)).log_weight, fitted.log_weight)


@pytest.mark.parametrize("form", ["a dict", "a generator", "one batch"])
def test_minibatches_may_be(form):
    x, y = data()
    found = {
        "a dict": [{"x": x[at], "y": y[at]} for at in torch.arange(NUM).split(30)],
        "a generator": ((x[at], y[at]) for at in torch.randperm(NUM).split(40)),
        "one batch": loader(x, y, size=NUM),
    }[form]
    check(VI(AutoFlow(regression), **OPTIONS).run(minibatches=found, scale=1.0))


@pytest.mark.parametrize("amortize", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rows_with_latents_are_in_the_order_of_their_numbers(amortize):
    y = data()[1]
    vi = VI(AutoFlow(groups, amortize=amortize), **{**OPTIONS, "num_steps": 100})
    draws = vi.run(minibatches=loader(torch.arange(NUM), y)).get_samples(1000)
    mean = y.sum() / (NUM + 2 / 25)
    assert abs(draws["mu"].mean() - mean) < 0.05
    assert ((draws["z"].mean(0) - (y + mean) / 2).abs() < 0.2).all()
    alone = vi.guide.for_rows(torch.arange(5), y[:5], num_samples=1000)["z"]
    assert ((alone.mean(0) - (y[:5] + mean) / 2).abs() < 0.2).all()


def test_predictions_are_of_the_rows_that_the_model_is_given():
    """By their numbers, in any order, some of them, or one several times."""
    y = data()[1]
    vi = VI(AutoFlow(groups), **{**OPTIONS, "num_steps": 60}).run(minibatches=loader(torch.arange(NUM), y))
    z = vi.get_samples(1000)["z"].mean(0)
    assert z.std() > 1
    for index in (torch.arange(NUM).flip(0), torch.tensor([7, 3, 99]), torch.tensor([5, 5, 5])):
        found = vi.predict(index, y[:1].expand(len(index)), num_samples=1000, seed=0)["y"]
        assert ((found.mean(0) - z[index]).abs() < 5 * (2 / 1000) ** 0.5).all()
    with pytest.raises(ValueError, match="plate 'groups' has rows 0 to 99, got subsample with 100; new rows"):
        vi.predict(torch.tensor([3, 100]), y[:2])


def test_a_second_run_goes_on(fitted):
    vi = VI(fitted.guide, **{**OPTIONS, "num_steps": 10}).run(minibatches=loader(*data()))
    check(vi)


class Made(IterableDataset):
    """Batches that are made as they are asked for, of which it is counted how many are alive."""

    def __init__(self, with_numbers: bool):
        self.with_numbers, self.alive, self.most = with_numbers, set[int](), 0

    def __iter__(self):
        x, y = data()
        for at in torch.arange(NUM).flip(0).split(7):
            batch = (at.clone(), y[at]) if self.with_numbers else (x[at], y[at])
            self.alive.add(id(batch[1]))
            weakref.finalize(batch[1], self.alive.discard, id(batch[1]))
            self.most = max(self.most, len(self.alive))
            yield batch


@pytest.mark.parametrize("is_large", [False, True])
def test_minibatches_are_let_go_of(is_large, monkeypatch):
    """Rows that are too many for memory are in a file, without a name where that can be."""
    monkeypatch.setattr("pyro_nflows.model.row_store.MOST_BYTES", 0 if is_large else 2**28)
    made = Made(with_numbers=False)
    vi = VI(AutoFlow(regression), **OPTIONS).run(minibatches=DataLoader(made, batch_size=None))
    check(vi)
    assert made.most <= 3  # the first, which the guide is set up by, the last, and the one under way
    columns = vi.posterior.call[0]
    assert all((column.untyped_storage().filename is not None) == is_large for column in columns)
    assert not list(Path(tempfile.gettempdir()).glob("pyro_nflows_*.rows"))
    check(VI(vi.guide, **{**OPTIONS, "num_steps": 10}).run(minibatches=DataLoader(made, batch_size=None)))
    assert vi.predict(data()[0][:3], None, num_samples=5)["y"].shape == (5, 3)


def test_rows_with_numbers_are_let_go_of(monkeypatch):
    monkeypatch.setattr("pyro_nflows.model.row_store.MOST_BYTES", 0)
    y, made = data()[1], Made(with_numbers=True)
    vi = VI(AutoFlow(groups), **{**OPTIONS, "num_steps": 60}).run(minibatches=DataLoader(made, batch_size=None))
    assert made.most <= 3
    rows, values = vi.posterior.call[0]
    assert torch.equal(rows, torch.arange(NUM))
    assert torch.equal(values, y)
    assert ((vi.get_samples(1000)["z"].mean(0) - (y + y.sum() / (NUM + 2 / 25)) / 2).abs() < 0.3).all()
    before = described(vi.posterior.call)
    assert before == described(((rows.clone(), values.clone()), {}))  # memory or file, a checkpoint knows them


def test_the_numbers_are_found_among_columns_that_begin_like_them(monkeypatch):
    """As a group's number does, in a loader that is not shuffled."""
    monkeypatch.setattr("pyro_nflows.model.row_store.CHUNK", 7)

    def model(group: Tensor, index: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
        with pyro.plate("groups", NUM, subsample=index):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    order = torch.cat([torch.arange(20), torch.arange(20, NUM).flip(0)])
    given = loader(torch.arange(NUM) % 20, order, data()[1], size=20, shuffle=False)
    _, (args, _) = of_minibatches("VI", AutoFlow(model), given, (), {})
    assert torch.equal(args[1], torch.arange(NUM))
    assert torch.equal(args[0], (torch.arange(NUM) % 20)[order.argsort()])
    assert torch.equal(args[2], data()[1][order.argsort()])


def test_no_room_on_the_disk_is_told(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=r"no room for 0.0008 GB of rows in .*set the environment variable TMPDIR"):
        mapped((100, 1000), torch.float64)
    assert not list(Path(tempfile.gettempdir()).glob("pyro_nflows_*.rows"))


def no_plate(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)


def of_a_batch(x: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def without_numbers(y: Tensor) -> None:
    with pyro.plate("groups", NUM, subsample_size=len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


X, Y = data()


@pytest.mark.parametrize(
    ("model", "minibatches", "error", "message"),
    [
        (
            regression,
            lambda: loader(X, Y, drop_last=True),
            ValueError,
            "has 100 rows, but one pass .* gave 90; expected",
        ),
        (regression, lambda: itertools.cycle(loader(X, Y)), ValueError, "gave more; expected each row once"),
        (regression, lambda: iter(()), ValueError, "there was no minibatch; an iterator that has been gone through"),
        (regression, lambda: X, TypeError, "expected minibatches to be a torch.utils.data.DataLoader.*got Tensor"),
        (
            regression,
            lambda: [(X, ["a"] * NUM)],
            TypeError,
            "must be tensors whose first dimension.*got str",
        ),
        (regression, lambda: [(X, Y[:5])], ValueError, r"tensors of a minibatch have \[100, 5\] rows"),
        (regression, lambda: [(X[:50], Y[:50]), (X[50:],)], ValueError, "minibatches differ in their form"),
        (no_plate, lambda: loader(X, Y), ValueError, "no plate of the model has as many rows as a minibatch, 30"),
        (of_a_batch, lambda: loader(X, Y), ValueError, "has to say how many there are in all"),
        (without_numbers, lambda: loader(Y), ValueError, "does not say which rows it has; let the Dataset give"),
        (
            regression,
            lambda: [(X[:50], Y[:50]), (X[50:, :1], Y[50:])],
            ValueError,
            r"minibatches differ: a row of \(1,\) numbers .* after one of \(2,\) .*padded",
        ),
        (
            groups,
            lambda: loader(torch.arange(NUM) + 1, Y),
            ValueError,
            "rows' numbers, from 0 to 99, each once",
        ),
        (
            groups,
            lambda: loader(torch.arange(NUM), Y, shuffle=None, sampler=RandomSampler(Y, replacement=True)),
            ValueError,
            "rows' numbers, from 0 to 99, each once",
        ),
    ],
)
def test_mistakes_are_told(model, minibatches, error, message):
    with pytest.raises(error, match=message):
        VI(AutoFlow(model), **OPTIONS).run(minibatches=minibatches())


def test_a_loader_is_no_argument_of_the_model():
    vi = VI(AutoFlow(regression), **OPTIONS)
    with pytest.raises(TypeError, match=r"run\(minibatches=loader\)"):
        vi.run(loader(*data()))
    with pytest.raises(ValueError, match="got 1 argument beside minibatches="):
        vi.run(X, minibatches=loader(*data()))
