"""The benchmark of 28 by 28 images: its unit, its pairs, and that all of it runs on images made on the spot."""

import contextlib
import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import (
    fashion,
    fashion_data,
    fashion_flows,
    fashion_gpu,
    fashion_indices,
    fashion_strata,
    fashion_training,
)
from pyro_nflows.flows import cif_image, num_params
from pyro_nflows.layers import Indexed, Residual


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of the format, of a bright square on noise."""
    for name, number in zip(fashion_data.FILES, (80, 12)):
        images = torch.randint(0, 60, (number, 28, 28), dtype=torch.uint8)
        images[:, 8:20, 8:20] += 150
        head = b"".join(value.to_bytes(4, "big") for value in (2051, number, 28, 28))
        (tmp_path / name).write_bytes(gzip.compress(head + images.numpy().tobytes()))
    return tmp_path


def test_a_fair_coin_for_each_level_needs_eight_bits() -> None:
    """On the logit scale, uniform pixels are logistic."""
    reals, log_det = fashion_data.to_reals(256 * torch.rand(20, 784))
    logistic = -(reals + 2 * torch.nn.functional.softplus(-reals)).sum(-1)
    assert torch.allclose(fashion_data.bits_per_dimension(logistic + log_det), torch.tensor(8.0), atol=1e-5)


def test_pixels_come_back_from_the_logit_scale() -> None:
    pixels = torch.cat([256 * torch.rand(3, 784), torch.zeros(1, 784), torch.full((1, 784), 256.0)])
    assert torch.allclose(fashion_data.to_pixels(fashion_data.to_reals(pixels)[0]), pixels, atol=1e-6)


def test_files_are_read_and_what_is_wrong_is_said(folder: Path, tmp_path: Path) -> None:
    data = fashion_data.load(fashion_data.folder(folder))
    assert [tuple(part.shape) for part in data] == [(80, 784), (12, 784)]
    assert data.train.view(-1, 28, 28)[:, 8:20, 8:20].min() >= 150 > data.train.view(-1, 28, 28)[:, 0].max()
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        fashion_data.folder(tmp_path / "nowhere")
    (tmp_path / "wrong.gz").write_bytes(gzip.compress(b"not an image at all, nor sixteen bytes of one"))
    with pytest.raises(ValueError, match="expected an IDX file of images of 28 x 28 bytes"):
        fashion_data.read(tmp_path / "wrong.gz")


@pytest.mark.parametrize("size", fashion_flows.SIZES)
@pytest.mark.parametrize(("first", "second"), fashion_flows.PAIRS)
def test_pairs_are_of_equal_size(first: str, second: str, size: str) -> None:
    sizes = [num_params(fashion_flows.methods(size)[name].build()) for name in (first, second)]
    assert sizes[0] <= sizes[1] < 1.02 * sizes[0]


def test_flows_of_a_seed_see_the_same_batches_and_each_image_once_an_epoch() -> None:
    levels = torch.arange(130, dtype=torch.uint8)[:, None].expand(-1, 784)
    first, second = (fashion_training.batches(levels, 3) for _ in range(2))
    ones, others = ([next(stream)[:, 0] for _ in range(4)] for stream in (first, second))
    assert all(torch.equal(a, b) for a, b in zip(ones, others))
    assert len(torch.cat(ones[:2]).unique()) == 128


def test_it_trains_tests_and_goes_on_from_what_is_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(folder), "--methods", "flowified convnet", "--seeds", "1", "--epochs", "3"]
    arguments += ["--samples", "2", "--out", str(tmp_path / "out")]
    (row,) = fashion.main(arguments)
    assert row.iwae is not None
    assert row.iwae < row.bits + 0.5
    assert json.loads((tmp_path / "out" / "rows.json").read_text())[0]["bits"] == row.bits
    assert (tmp_path / "out" / "draws.png").exists()
    (again,) = fashion.main(arguments)
    assert (again.bits, again.epochs) == (row.bits, row.epochs)
    assert "flowified convnet" in capsys.readouterr().out


def test_estimated_determinants_are_tested_with_exact_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a smaller flow: exact determinants of 784 dimensions take seconds."""
    small = fashion_flows.Method(
        lambda log_det="roulette", num_terms=2: fashion_flows.contractions((1, 4, 4), 2, log_det, num_terms), 1e-3
    )
    assert small.is_estimated
    flow = small.build()
    exact = fashion.twin(small, flow, "exact")
    assert all(torch.equal(a, b) for a, b in zip(flow.state_dict().values(), exact.state_dict().values()))
    assert exact.inverse_noise_dim == 0


def test_log_determinants_in_strata_are_right_on_average_with_their_gradient() -> None:
    """Against exact ones, of 64 equal images: the mean over a batch, each step of other signs."""
    flow = fashion_flows.contractions((1, 4, 4), 6, num_layers=1)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    exact = fashion_flows.contractions((1, 4, 4), 6, "exact", num_layers=1)
    exact.load_state_dict(flow.state_dict())
    image = torch.randn(1, 16)
    here, log_weight = exact.inverse(image)
    wanted = slopes(log_weight.sum(), exact)
    found = []
    with fashion_strata.in_strata(flow) as bounds:
        for _ in range(60):
            bounds.renew()
            there, log_weights = flow.inverse(image.expand(64, 16), torch.randn(64, flow.inverse_noise_dim))
            found.append(slopes(log_weights.mean(), flow))
    assert torch.allclose(there, here.expand_as(there))
    each = torch.stack(found)
    error = each.std(0) / len(each) ** 0.5
    assert ((each.mean(0) - wanted).abs() <= 5 * error + 1e-9).all()
    assert not any(isinstance(part, fashion_strata.InStrata) for part in flow.modules())


def slopes(value: torch.Tensor, flow: torch.nn.Module) -> torch.Tensor:
    """A number, and its gradient in all parameters."""
    parts = torch.autograd.grad(value, list(flow.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([value.detach().view(1), *(part.flatten() for part in parts)])


@torch.no_grad()
def test_watched_layers_compute_what_they_are_there_for() -> None:
    """Indexed ones do as before; residual ones say how far estimates are off, and these errors are zero on average."""

    flow = cif_image((1, 4, 4), lambda shape: fashion_flows.contractions(shape, 6, "roulette", 4, 1), 1, (3,))
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    images, noise = torch.randn(1, 16).expand(500, 16), torch.randn(500, flow.inverse_noise_dim)
    before = flow.inverse(images, noise)
    with fashion_indices.turned(flow, Indexed, fashion_indices.Watched) as layers:
        assert all(torch.equal(a, b) for a, b in zip(before, flow.inverse(images, noise)))
        assert all(math.isfinite(sum(layer.noted)) and layer.noted[-1] > 0 for layer in layers)
    with fashion_indices.turned(flow, Residual, fashion_indices.Exact) as layers:
        _, log_weight = flow.inverse(images, noise)
        errors = sum(-layer.noted for layer in layers)
    assert torch.allclose(log_weight + errors, before[1])
    assert errors.mean().abs() < 5 * errors.std() / len(errors) ** 0.5
    assert {type(part) for part in flow.modules() if isinstance(part, Indexed | Residual)} == {Indexed, Residual}


def test_side_by_side_flows_of_a_pair_take_equally_many_steps_and_learn() -> None:
    """The way of a GPU, its steps run as they are."""
    images = torch.randint(100, 120, (64, 784), dtype=torch.uint8)
    small = fashion_flows.Method(lambda: fashion_flows.steps((1, 28, 28), 4, 1), 1e-2)
    fits = [
        fashion_training.begun(name, small, seed, images, torch.device("cpu"))
        for name, seed in (("Glow", 0), ("CIF-Glow", 0), ("TarFlow", 0))
    ]
    before = [fashion.bits_of(fit.flow, images.double()).mean() for fit in fits]
    saved: list[list[str]] = []
    shares = iter([*torch.linspace(0, 0.9, 20).tolist(), 1.0] * 2)
    fashion_gpu.train(
        fits, images, 32, lambda: lambda _: next(shares), lambda group: saved.append([fit.name for fit in group])
    )
    assert {fit.num_steps for fit in fits[:2]} == {fits[0].num_steps}
    assert sum(fit.num_steps for fit in fits[1:]) == 40
    assert sorted(saved) == [["Glow", "CIF-Glow"], ["TarFlow"]]
    after = [fashion.bits_of(fit.flow, images.double()).mean() for fit in fits]
    assert all(b < a for a, b in zip(before, after))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    images = torch.randint(0, 256, (8, 784), dtype=torch.uint8)
    small = fashion_flows.Method(lambda: fashion_flows.steps((1, 28, 28), 4, 1), 1e-2)
    fit = fashion_training.begun("Glow", small, 0, images, torch.device("cpu"))
    with contextlib.ExitStack() as entered:
        stepper = fashion_gpu.Stepper(fit, images, 8, entered)
        stepper(torch.arange(8), 0.5)
        state = [p.detach().clone() for p in stepper.parameters]
        stepper.uniform.fill_(torch.nan)
        stepper.play()
        assert stepper.wait() != stepper.wait()
        assert all(torch.equal(a, b) for a, b in zip(state, stepper.parameters))
        stepper(torch.arange(8), 0.5)
        assert not any(torch.equal(a, b) for a, b in zip(state[:1], stepper.parameters))
