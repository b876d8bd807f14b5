"""What is found wrong with a fit besides its weights: mass that it misses, and sites that keep it from being good."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .moves import Drift


@dataclass(frozen=True)
class MissedMass:
    """Mass of the posterior where the guide never goes, as a search has found it.

    :param share: of the posterior's mass; 0 where nothing was found.
    :param site: the coordinate in which the heaviest missed region is farthest from the draws, such as ``"mu[3]"``;
        empty where none is known.
    :param value: that coordinate's value in the middle of the region.

    Example::

        >>> print(MissedMass(0.5, "mu[3]", 10.0))
        about 50% of the posterior mass, such as near mu[3] = 10
    """

    share: float = 0.0
    site: str = ""
    value: float = math.nan

    def __str__(self) -> str:
        near = f", such as near {self.site} = {self.value:.3g}" if self.site else ""
        return f"about {self.share:.0%} of the posterior mass{near}"


@dataclass(frozen=True)
class Subsampled:
    """The subsampled plates of a model, and whether the log density of draws is over all of their rows.

    :param plates: each one's name, the rows that a run takes, and how many it has.
    :param obstacle: why the log density is that of a minibatch; empty where it is over all rows.
    :param is_noisy: whether that minibatch is another one each time.
    :param stopped: whether a callback ended it.
    :param unsearched: whether no further modes were searched for, because ascents over all rows would take too long.

    Example::

        >>> print(Subsampled((("data", 200, 20000),)))
        all 20,000 rows of plate 'data'
        >>> print(Subsampled((("data", 200, 20000),), "the model is random"))
        200 of 20,000 rows of plate 'data'
    """

    plates: tuple[tuple[str, int, int], ...] = ()
    obstacle: str = ""
    is_noisy: bool = False
    unsearched: bool = False

    def __str__(self) -> str:
        return " and ".join(
            f"{f'{taken:,} of' if self.obstacle else 'all'} {size:,} rows of plate '{name}'"
            for name, taken, size in self.plates
        )


@dataclass(frozen=True)
class Faults:
    """What keeps a fit from being good, with the names of the sites; empty where nothing was found.

    :param not_finite: the first site whose log density is not finite at some draws.
    :param improper: sites along which the log density does not fall, however far one goes.
    :param edge: a site whose draws lie on the edge of its support, as far as numbers can tell, and the share of them.
    :param scale: a site that varies on a scale beyond what step sizes can follow, and that scale.
    :param round_trip: the error of the flow's inverse, in standard deviations of the base.
    :param unobserved: whether the model had no data, which is meant where the prior itself is wanted.
    :param drift: what does not stay where it is, looked for where all hangs on the weights.
    :param unexamined: whether there was no time left to see whether the density falls, where the weights leave a doubt.
    :param vague: the site of which the weights tell least, and how many independent draws they are worth for it.
    """

    not_finite: str | None = None
    improper: tuple[str, ...] = ()
    edge: tuple[str, float] | None = None
    scale: tuple[str, float] | None = None
    round_trip: float = 0.0
    unobserved: bool = False
    drift: Drift | None = None
    vague: tuple[str, float] | None = None
    unexamined: bool = False

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> "Faults":
        """What :func:`dataclasses.asdict` made a dict of.

        Example::

            >>> from dataclasses import asdict
            >>> faults = Faults(improper=("a",), drift=Drift("tau", -0.3, 1.5))
            >>> Faults.restored(asdict(faults)) == faults
            True
        """
        drift = state.get("drift")
        return cls(**{**state, "drift": None if drift is None else Drift(**drift)})

    def words(self) -> dict[str, str]:
        """The site names as phrases of a sentence.

        Example::

            >>> faults = Faults(improper=("a", "b"), edge=("tau", 0.02), scale=("mass", 1e12))
            >>> for phrase in faults.words().values():
            ...     print(phrase)
            sites 'a' and 'b'
            2% of those of site 'tau'
            site 'mass' varies on a scale of about 1e+12
        """
        head, last = [f"'{name}'" for name in self.improper[:-1]], "".join(f"'{name}'" for name in self.improper[-1:])
        found = {"improper": f"sites {', '.join(head)} and {last}" if head else f"site {last}", "edge": "", "scale": ""}
        if self.edge is not None:
            found["edge"] = f"{self.edge[1]:.0%} of those of site '{self.edge[0]}'"
        if self.scale is not None:
            name, width = self.scale
            found["scale"] = f"site '{name}' varies on a scale of " + (
                f"about {width:.0e}" if width else "less than 1e-15"
            )
        return found


#: What to do where memory was not enough.
LESS_MEMORY = "give VI fewer particles, as in objective=ELBO(num_particles=16), or the model's plate a subsample_size."


@dataclass(frozen=True)
class Training:
    """What a verdict says of the training.

    :param num_steps: steps taken.
    :param skipped: steps skipped because something was not finite.
    :param restarts: how often training diverged and went back.
    :param was_right: whether a start needed no training.
    :param descent: steps by which the best Gaussian was found before that.
    :param out_of_time: whether its time was over before it was complete.
    :param unsearched: whether that was so before other modes were searched for.
    :param out_of_memory: whether a step had not enough memory.
    :param quick: whether no flow was asked for: the remedy is then to ask for one.
    :param has_mixture: whether what was fitted is a mixture of Gaussians.

    Example::

        >>> print(Training(restarts=2).words(refused=True), Training(was_right=True).words(refused=False), sep="")
         Training diverged and went back 2 times. The start was already right: no training was needed.
    """

    num_steps: int = 0
    skipped: int = 0
    restarts: int = 0
    was_right: bool = False
    descent: int = 0
    out_of_time: bool = False
    stopped: bool = False
    unsearched: bool = False
    out_of_memory: bool = False
    quick: bool = False
    has_mixture: bool = False

    def words(self, refused: bool, is_close: bool = True) -> str:
        """What is said after a verdict's sentence.

        :param refused: whether the draws are not to be trusted.
        :param is_close: whether the guide's own draws are.
        """
        said = ""
        if refused and self.restarts:
            said += f" Training diverged and went back {self.restarts} time{'s' * (self.restarts > 1)}."
        if self.was_right and not self.num_steps and not refused:
            said += self._of_the_start(is_close)
        if self.out_of_time:
            said += f" Training ended because max_seconds was over{': more time may help' if refused else ''}."
        if self.stopped:
            said += f" Training ended because the callback said so{': more steps may help' if refused else ''}."
        if self.unsearched:
            said += " There was no time left to search for other modes."
        if self.out_of_memory:
            said += " Training ended because a step had not enough memory: " + LESS_MEMORY
        return said

    def _of_the_start(self, is_close: bool) -> str:
        """What is said where nothing was trained: that the start is right only if its own draws are to be trusted."""
        if not is_close:
            return "" if self.quick else " No flow was trained."
        if self.has_mixture:
            return " The best mixture of Gaussians is right: no flow was trained."
        if self.descent:
            return " The best Gaussian is right: no flow was trained."
        return " The start was already right: no training was needed."


@dataclass(frozen=True)
class RowFit:
    """The row of a subsampled plate that is fitted worst, by importance weights of its own.

    :param plate: its name.
    :param num_rows: how many rows it has.
    :param row: the worst one's number.
    :param ess: the effective share of that row's draws.
    :param pareto_k: of their weights.
    :param uneven: nats by which integrals over all rows may distort the weights of what is outside of the plate.

    Example::

        >>> print(RowFit("groups", 2000, 17, 0.93, 0.2))
        groups[17] (ESS 93%, k-hat 0.20)
    """

    plate: str = ""
    num_rows: int = 0
    row: int = 0
    ess: float = 1.0
    pareto_k: float = -math.inf
    uneven: float = 0.0

    def __str__(self) -> str:
        return f"{self.plate}[{self.row}] (ESS {self.ess:.0%}, k-hat {self.pareto_k:.2f})"


@dataclass(frozen=True)
class Block:
    """How the rows of some plates are fitted, given the draws of all other latents: numbers of the guide's base.

    :param plates: their names; none for what is outside of plates.
    :param num_rows: how many rows there are.
    :param before: the guide's conditional variance, :math:`v_q`.
    :param variance: the posterior's, :math:`v`, given the guide's draws of the rest.
    :param between: by how much more the conditional mean varies than the guide's, :math:`c - c_q`.
    :param noise: its standard error.
    :param shift: the root mean square of the conditional mean's own mean; zero in the guide.
    :param shared_ratio: the posterior's standard deviations over the guide's, of the sum of rows that is worst, at
        least.
    :param row: the row whose weights are worst.
    :param ess: the effective share of that row's candidates.
    :param pareto_k: of their weights.

    Example::

        >>> Block(("users",), 400, 1.0, 0.95, 0.05, 0.01, 0.0).ratio
        1.0
    """

    plates: tuple[str, ...]
    num_rows: int
    before: float
    variance: float
    between: float
    noise: float
    shift: float
    shared_ratio: float = 1.0
    row: int = 0
    ess: float = 1.0
    pareto_k: float = -math.inf

    @property
    def ratio(self) -> float:
        """The posterior's standard deviations over the guide's, of rows, at least."""
        return self.ratio_at(self.between)

    def ratio_at(self, between: float) -> float:
        """The same for another variance of the conditional mean."""
        return (self.variance / max(1e-3, self.before - between)) ** 0.5

    def __str__(self) -> str:
        name = " x ".join(self.plates)
        return f"{name}[{self.row}] (ESS {self.ess:.0%}, k-hat {self.pareto_k:.2f})"


def apart(value: float, threshold: float) -> tuple[str, str]:
    """Both with two digits, or with as many as show that they differ.

    Example::

        >>> apart(0.7312, 0.7), apart(0.6213, 0.6186)
        (('0.73', '0.70'), ('0.621', '0.619'))
    """
    for digits in range(2, 7):
        shown = f"{value:.{digits}f}", f"{threshold:.{digits}f}"
        if shown[0] != shown[1] or value == threshold:
            break
    return shown
