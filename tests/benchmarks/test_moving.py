"""The benchmark of a moving disc: how it moves, equal sizes, and that all of it runs."""

from pathlib import Path

import pytest
import torch

from benchmarks import moving
from pyro_nflows import flows
from pyro_nflows.flows import num_params
from pyro_nflows.layers.base import Layer


def test_the_disc_moves_by_its_velocity_and_comes_back_from_the_edges() -> None:
    frames = moving.clips(200, 20).view(200, 20, 16, 16)
    mass = (frames > 0.5).double()
    at = torch.arange(16.0) + 0.5
    centre = torch.stack([(mass.sum(d) * at).sum(-1) / mass.sum((-1, -2)) for d in (-1, -2)], -1)
    assert centre.min() >= 2.5
    assert centre.max() <= 13.5
    step = centre.diff(dim=1).abs()
    assert step.max() <= 1.5
    assert len(frames.view(200, -1).unique(dim=0)) == 200


def test_the_baseline_has_no_fewer_parameters() -> None:
    assert num_params(moving.told(2)) <= num_params(moving.alone(2)) < 1.1 * num_params(moving.told(2))


def test_it_runs_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def small(num_frames: int) -> Layer:
        return flows.video((1, 16, 16), num_frames, 2, 1, (4,), prior_dims=(4,))

    monkeypatch.setattr(moving, "told", small)
    monkeypatch.setattr(moving, "FLOWS", {"given the last two": small, "each frame alone": moving.alone})
    monkeypatch.setattr(moving, "NUM_TEST", 20)
    moving.main(["--steps", "2", "--frames", "2", "--picture", str(tmp_path / "video.png")])
    assert (tmp_path / "video.png").exists()
    assert "The last frames are worth" in capsys.readouterr().out


def test_what_is_given_stays() -> None:
    flow = flows.video((1, 16, 16), 3, 2, 1, (4,), prior_dims=(4,))
    given = moving.clips(2, 2)
    after = moving.continued(flow, given)
    assert torch.allclose(after[:, : 2 * moving.DIM], given, atol=1e-6)
    assert after.shape == (2, 3 * moving.DIM)
