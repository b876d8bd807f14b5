"""Observations that read several rows of one plate, such as games: colours, exact fits, what is said of bad ones."""

from pathlib import Path
from typing import cast

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_nflows import VI, AutoFlow
from pyro_nflows.diagnostics.crossed_verdict import with_blocks
from pyro_nflows.diagnostics.verdict import Outcome
from pyro_nflows.inference.conditionals import Conditionals
from pyro_nflows.inference.crossed_posterior import CrossedPosterior, crossed_terms
from pyro_nflows.layers import SharedAffine
from pyro_nflows.model.hierarchy import Hierarchy, Outline
from pyro_nflows.model.row_owners import Derivatives, SeveralRowsError
from pyro_nflows.model.row_reads import RowReads, coloured, rows_read

PLAYERS, GAMES = 60, 900
OPTIONS = {"seed": 0, "progress_bar": False, "engine": "traced"}


def games() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(PLAYERS, (GAMES,), generator=generator)
    other = (one + 1 + torch.randint(PLAYERS - 1, (GAMES,), generator=generator)) % PLAYERS
    skill = torch.randn(PLAYERS, generator=generator, dtype=torch.float64)
    return one, other, skill[one] - skill[other] + torch.randn(GAMES, generator=generator, dtype=torch.float64)


def margins(one: Tensor, other: Tensor, y: Tensor) -> None:
    """By how much one player beats another."""
    with pyro.plate("players", PLAYERS):
        skill = pyro.sample("skill", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("games", len(y), subsample_size=150) as i:
        pyro.sample("y", dist.Normal(skill[one[i]] - skill[other[i]], 1.0), obs=y[i])


def wins(one: Tensor, other: Tensor, y: Tensor) -> None:
    """Bradley and Terry's model: who won."""
    with pyro.plate("players", PLAYERS):
        skill = pyro.sample("skill", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("games", len(y), subsample_size=150) as i:
        pyro.sample("y", dist.Bernoulli(logits=skill[one[i]] - skill[other[i]]), obs=(y[i] > 0).to(y))


@pytest.fixture(scope="module")
def fitted() -> VI:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_nflows.inference.conditionals.MOST", 64)
        return VI(AutoFlow(margins, structure="plates"), **OPTIONS).run(*games())


def test_the_rows_of_games_of_two_against_two_are_found() -> None:
    torch.manual_seed(0)
    teams = torch.stack([torch.randperm(200)[:4] for _ in range(300)])
    skill = torch.randn(200, 2, dtype=torch.float64)

    def terms(z: Tensor) -> Tensor:
        sums = z.view(200, 2)[teams].sum(-1)
        return (sums[:, :2].sum(-1) - sums[:, 2:].sum(-1)).sigmoid().log()

    found = rows_read(Derivatives(terms, skill.flatten()), "players", torch.arange(400).view(200, 2))
    expected = {(game, player) for game, team in enumerate(teams.tolist()) for player in team}
    assert set(zip(found.terms.tolist(), found.rows.tolist())) == expected


def test_terms_of_all_rows_are_told() -> None:
    with pytest.raises(SeveralRowsError, match="reads many rows of plate 'players'"):
        rows_read(Derivatives(lambda z: z.sum()[None].square(), torch.randn(50)), "players", torch.arange(50)[:, None])
    with pytest.raises(SeveralRowsError, match="fall into 70 groups"):
        coloured(torch.combinations(torch.arange(70)) @ torch.tensor([70, 1]), 70)


def test_no_term_has_two_rows_of_a_colour() -> None:
    one, other, _ = games()
    hierarchy = Hierarchy.of_outlines({"skill": Outline((PLAYERS,), {"players": 0})})
    runs = [
        (lambda z, at=at: (z[one[at]] - z[other[at]]).sin(), torch.randn(PLAYERS), hierarchy, [torch.arange(PLAYERS)])
        for at in (slice(0, 500), slice(500, None))
    ]
    reads = RowReads(runs, hierarchy)
    colours = reads.colours[0]
    assert (colours[one] != colours[other]).all()
    assert colours.max() < 20
    found = torch.stack([reads.owners(0, 0, colour) for colour in range(int(colours.max()) + 1)])
    pairs = found.sort(0).values[:2].T
    assert torch.equal(pairs, torch.stack([one, other], 1)[:500].sort(1).values)


def test_margins_are_exact(fitted: VI) -> None:
    one, other, y = games()
    x = torch.zeros(GAMES, PLAYERS, dtype=torch.float64)
    x[torch.arange(GAMES), one], x[torch.arange(GAMES), other] = 1.0, -1.0
    covariance = torch.linalg.inv(x.T @ x + torch.eye(PLAYERS))
    mean, sd, num = covariance @ x.T @ y, covariance.diagonal().sqrt(), 4000
    z = fitted.get_samples(num, resample=False)["skill"].double()
    assert isinstance(fitted.posterior, CrossedPosterior)
    assert fitted.verdict().outcome is Outcome.TRUST
    assert ((z.mean(0) - mean).abs() < 5 * sd / num**0.5 + 0.01 * sd).all()
    assert ((z.std(0) / sd).mean() - 1).abs() < 0.02
    assert (z.sum(-1).std() / covariance.sum().sqrt() - 1).abs() < 5 / (2 * num) ** 0.5 + 0.02


def test_wins_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_nflows.inference.conditionals.MOST", 32)
    vi = VI(AutoFlow(wins, structure="plates"), **OPTIONS).run(*games())
    assert vi.verdict().outcome is Outcome.TRUST
    assert "'players'" in vi.verdict().sentence


@pytest.mark.parametrize(("spoil", "outcome"), [(0.6, Outcome.ROWS), (1.5, Outcome.ROWS), (None, Outcome.SHARED)])
def test_bad_fits_are_told(fitted: VI, spoil: float | None, outcome: Outcome) -> None:
    """Rows of other widths; and the same Gaussian without the constant that all players share."""
    guide = fitted.posterior._own_guide()
    layer = guide.plain_layer()
    with torch.no_grad():
        if spoil is None:
            shared = layer.flow[0]
            assert isinstance(shared, SharedAffine)
            shared.put(shared.directions[:0], shared.log_widths[:0])
        else:
            layer.end.log_scale += torch.tensor(spoil).log()
    _, blocks = Conditionals(layer, crossed_terms(guide, (games(), {}))).judged(32)
    assert with_blocks(fitted.posterior.of_weights(), blocks).outcome is outcome


def test_rows_at_one_place_share_as_much_as_others(fitted: VI) -> None:
    """After draws all are level; along their locations, which are all the same, there is nothing more to share."""
    guide, (one, other, y) = fitted.posterior._own_guide(), games()
    layer = guide.plain_layer()
    with torch.no_grad():
        layer.end.loc.zero_()
    _, blocks = Conditionals(layer, crossed_terms(guide, ((one, other, torch.zeros_like(y)), {}))).judged(32)
    assert 0.9 < blocks[-1].shared_ratio < 1.1


def test_a_colour_of_one_row_shares_what_is_known_of_it(fitted: VI) -> None:
    conditionals = Conditionals(fitted.posterior._own_guide().plain_layer(), crossed_terms(fitted.guide, (games(), {})))
    part = conditionals.parts[-1]
    one = part._replace(places=part.places[:1], rows=cast(Tensor, part.rows)[:1])
    before, shared, along = conditionals._known(one)
    assert shared.shape == (1, 1)
    assert torch.allclose(along, before)


def test_it_is_saved_and_loaded(fitted: VI, tmp_path: Path) -> None:
    fitted.save(tmp_path / "fit.pt")
    for args in (games(), ()):
        again = VI.load(tmp_path / "fit.pt", AutoFlow(margins, structure="plates"), *args)
        assert again.verdict().sentence == fitted.verdict().sentence
    with pytest.raises(ValueError, match="reads several rows of plate 'players' at once, so that no row has data of"):
        fitted.leave_one_group_out("players")


def test_a_regression_on_all_rows_has_no_ties() -> None:
    """Its terms read all rows, so it is fitted as a model of one plate."""

    def regression(x: Tensor, y: Tensor) -> None:
        with pyro.plate("features", 40):
            w = pyro.sample("w", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("data", len(y), subsample_size=10) as i:
            pyro.sample("y", dist.Normal(x[i] @ w, 1.0), obs=y[i])

    guide, other = AutoFlow(regression, structure="plates"), AutoFlow(margins, structure="plates")
    x = torch.randn(30, 40, dtype=torch.float64)
    guide.set_up((x, x.sum(1)), {})
    other.set_up(games(), {})
    for each, ties in ((guide, False), (other, True)):
        assert each.hierarchy is not None
        assert each.hierarchy.tied == each.hierarchy.shares == ties
