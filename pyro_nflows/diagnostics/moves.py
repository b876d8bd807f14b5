"""What became of draws: moved by Hamiltonian Monte Carlo, or drawn anew given a part of them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Drift:
    """A site that does not stay as the weights have it when draws are moved by Hamiltonian Monte Carlo.

    :param site: its name.
    :param shift: of its mean, in standard deviations.
    :param ratio: of its standard deviations, after over before.

    Example::

        >>> print(Drift("tau", -0.3, 1.5))
        the mean of site 'tau' moves by -0.30 standard deviations, and these become 1.50 times what they were
    """

    site: str
    shift: float
    ratio: float

    def __str__(self) -> str:
        moves = f"the mean of site '{self.site}' moves by {self.shift:.2f} standard deviations"
        return f"{moves}, and these become {self.ratio:.2f} times what they were"


@dataclass(frozen=True)
class Settled:
    """Markov chains that have settled, whose draws stand for the posterior in the place of the guide's.

    :param num_chains: how many move side by side.
    :param r_hat: the largest of a latent.
    :param ess: independent draws that theirs are worth, the least of a latent.
    :param spacing: trajectories between two draws of a chain.
    :param step_size: of a leapfrog step.
    :param widths: of the coordinates in which steps are measured.

    Example::

        >>> print(Settled(256, 1.012, 3512.0))
        256 Markov chains (R-hat 1.012, worth 3,512 independent draws)
    """

    num_chains: int
    r_hat: float
    ess: float
    spacing: int = 1
    step_size: float = 1.0
    widths: Tensor | None = None

    def __str__(self) -> str:
        return f"{self.num_chains} Markov chains (R-hat {self.r_hat:.3f}, worth {self.ess:,.0f} independent draws)"


@dataclass(frozen=True)
class Redrawn:
    """Draws of which the guide has a few latents only, and the others are drawn anew from Gaussians given these.

    :param num_hubs: how many are the guide's.
    :param num_others: how many are drawn anew.
    :param own_ess: of the guide's own draws of all, a share of them.
    :param own_k: the k-hat of their weights.

    Example::

        >>> print(Redrawn(3, 206, 0.57, 0.9))
        of whose 209 latents 206 are drawn anew from their Gaussians given the other 3
    """

    num_hubs: int
    num_others: int
    own_ess: float
    own_k: float

    def __str__(self) -> str:
        hubs = "one" if self.num_hubs == 1 else f"{self.num_hubs}"
        total = f"{self.num_hubs + self.num_others:,}"
        return (
            f"of whose {total} latents {self.num_others:,} are drawn anew from their Gaussians given the other {hubs}"
        )

    def own(self) -> str:
        """What is said of the guide's own draws."""
        return f"{self.own_ess:.1%} and {self.own_k:.2f}"
