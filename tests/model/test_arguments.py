"""Data as people have them: arrays, columns and lists become tensors by one rule, or are refused in words."""

import copy
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import SBC, VI, AutoFlow
from pyro_nflows.model.arguments import ready
from pyro_nflows.model.arrays import DataWarning

N = 8
X = np.linspace(-1, 1, N)
Y = np.array([2.9, 0.4, 4.4, 3.1, 5.0, 2.2, 1.7, 3.3])


@pytest.fixture(autouse=True)
def single() -> Iterator[None]:
    """As users have it: numbers in Python are of single precision, numbers in NumPy of double."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def matmul(x: Any, y: Any = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(1), 3.0).to_event(1))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(x[:, None] @ w, 1.0), obs=y)


def line(x: Any, y: Any = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 3.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)


class Column:
    """What a column of polars is like: a name, and ``to_numpy``."""

    def __init__(self, values: Any):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def to_numpy(self) -> Any:
        return np.asarray(self.values)


KINDS: dict[str, Callable[[Any], Any]] = {
    "array": np.asarray,
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "big end first": lambda x: x.astype(">f8"),
    "objects": lambda x: x.astype(object),
    "pandas": lambda x: pd.Series(x, index=range(100, 100 + len(x))),
    "nullable": lambda x: pd.Series(x, dtype="Float64"),
    "to_numpy": Column,
    "list": lambda x: x.tolist(),
    "list of NumPy's": list,
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_holds_numbers_is_a_tensor_of_the_default_dtype(kind: str) -> None:
    (x,), kwargs = ready("VI.run", line, (KINDS[kind](X),), {"y": {"in": [KINDS[kind](Y)]}})
    for found, right in ((x, X), (kwargs["y"]["in"][0], Y)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.tensor(right, dtype=torch.float32))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "uint32", "int64", "Int64"])
def test_integers_are_int64_and_truth_values_bool(dtype: str) -> None:
    (found, yes), _ = ready("VI.run", line, (pd.Series([1, 2, 3], dtype=dtype), np.array([True, False])), {})
    assert found.dtype == torch.int64
    assert found.tolist() == [1, 2, 3]
    assert yes.dtype == torch.bool


def test_what_is_no_data_stays_what_it_is() -> None:
    pair, tensor = namedtuple("pair", "a b"), torch.zeros(2, dtype=torch.float64)
    given = ((3, 2), "name", None, 4, [], [(1, 2)], pair(tensor, 0.5), [tensor, tensor])
    found, _ = ready("VI.run", lambda *args: None, given, {})
    assert found[:6] == given[:6]
    assert found[6].a is tensor
    assert found[7][1] is tensor
    (size, share, nested), _ = ready("VI.run", line, (np.int64(3), np.float64(0.5), [[1, 2], [3, 4]]), {})
    assert type(size) is int
    assert type(share) is float
    assert nested.shape == (2, 2)


def posterior() -> tuple[float, float]:
    precision = float(X @ X) + 1 / 9
    return float(X @ Y) / precision, precision**-0.5


@pytest.mark.parametrize(("model", "kind"), [(line, "array"), (line, "float64"), (matmul, "list"), (matmul, "float64")])
def test_a_fit_of_such_data_is_the_posterior(model: Callable[..., None], kind: str) -> None:
    convert = {**KINDS, "float64": torch.tensor}[kind]
    vi = VI(AutoFlow(model), seed=0, engine="eager", progress_bar=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vi.run(convert(X), y=convert(Y))
    said = [each for each in caught if each.category is DataWarning]
    assert len(said) == (model is matmul and kind == "float64")  # torch promotes in the other model
    w, (mean, sd) = vi.get_samples(4000)["w"].double(), posterior()
    assert w.dtype == torch.float64
    assert abs(float(w.mean()) - mean) < 5 * sd / 4000**0.5 + 1e-3
    assert abs(float(w.std()) / sd - 1) < 5 / 8000**0.5


def test_all_that_comes_after_a_fit_takes_them_too(tmp_path: Any) -> None:
    vi = VI(AutoFlow(line), seed=0, engine="eager", progress_bar=False).run(pd.Series(X), pd.Series(Y))
    assert vi.predict(np.array([0.0, 1.0, 2.0]), num_samples=20)["y"].shape == (20, 3)
    assert vi.to_arviz(num_samples=20) is not None
    vi.save(tmp_path / "fit")
    again = VI.load(tmp_path / "fit", AutoFlow(line), X, Y.tolist())
    assert torch.equal(again.log_weight, vi.log_weight)
    judged = VI(copy.deepcopy(vi.guide), seed=0, progress_bar=False).judge(X, Y)
    assert judged.verdict().outcome.is_trusted


def test_sbc_takes_them_too() -> None:
    check = SBC(AutoFlow(matmul), num_simulations=2, num_samples=9, seed=0, engine="eager", progress_bar=False)
    assert check.run(X, pd.Series(Y)).ranks["w[0]"].shape == (2,)


def double(x: Any, y: Any = None) -> None:
    w = pyro.sample("w", dist.Normal(torch.zeros(1, dtype=torch.float64), 3.0).to_event(1))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(x[:, None] @ w, 1.0), obs=y)


def test_a_model_that_is_written_in_double_precision_has_data_in_double_precision() -> None:
    (x, y), _ = ready("VI.run", double, (X, Y), {})
    assert x.dtype == y.dtype == torch.float64
    (x, y), _ = ready("VI.run", double, (torch.tensor(X), torch.tensor(Y)), {})
    assert x.dtype == y.dtype == torch.float64


def test_casting_tensors_is_said_with_what_to_do() -> None:
    with pytest.warns(DataWarning, match=r"VI.run: data are cast to torch.float32.*set_default_dtype"):
        (x, y), _ = ready("VI.run", matmul, (torch.tensor(X), torch.tensor(Y)), {})
    assert x.dtype == y.dtype == torch.float32


def test_digits_that_are_lost_are_said() -> None:
    with pytest.warns(DataWarning, match=r"values of 'x' differ .*subtract their mean"):
        ready("VI.run", line, (1.7e9 + 60 * X, Y), {})
    with pytest.raises(ValueError, match=r"'y' holds values up to 4.4e\+200, more than torch.float32"):
        ready("VI.run", line, (X, 1e200 * Y.clip(0, 4.4)), {})


def test_what_holds_no_numbers_is_left_to_the_model_or_refused_in_words() -> None:
    frame = pd.DataFrame({"x": X, "y": Y, "who": list("abcdefgh")})

    def reads(df: Any) -> None:
        line(torch.tensor(df["x"].to_numpy()), torch.tensor(df["y"].to_numpy()))

    def cannot(df: Any) -> None:
        line(df["x"] @ torch.ones(3), df["y"])

    assert ready("VI.run", reads, (frame,), {})[0][0] is frame
    with pytest.raises(TypeError, match=r"argument 'df': it is a data frame; give columns"):
        ready("VI.run", cannot, (frame,), {})
    days, gaps = pd.Series(pd.date_range("2020-01-01", periods=N)), pd.Series([1, None] * 4, dtype=object)
    for column, words in ((frame["who"], "str such as 'a'.*factorize"), (days, "dates"), (gaps, "missing values")):
        with pytest.raises(TypeError, match=rf"VI.run: the model cannot use argument 'x': it .*{words}"):
            VI(AutoFlow(matmul), progress_bar=False).run(column, Y)


def test_asking_leaves_no_trace() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        pyro.param("scale", torch.tensor(1.0))
        matmul(x, y)

    pyro.clear_param_store()
    before = torch.get_rng_state()
    with pytest.warns(DataWarning):
        ready("VI.run", model, (torch.tensor(X), torch.tensor(Y)), {})
    assert not list(pyro.get_param_store())
    assert torch.equal(torch.get_rng_state(), before)
