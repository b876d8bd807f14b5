r"""The sizes of a fit's rounds: how many steps, how many particles, which step sizes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..engine import Round, Trainer, work_of
from ..flows.whitened import Whitened
from ..layers import PlateAffine, SparseAffine, TriangularAffine

#: A joint flow of more latents than these is trained no further from this ESS on, and neither is one of a dear model.
MANY, MANY_ESS = 64, 0.6
#: And one with a full matrix or a sparse one of more latents than these, of which a step is dear.
LARGE, LARGE_ESS = 512, 0.3
#: Particles of its steps where the matrix is sparse: each latent has numbers of its own, and few.
FEW_PARTICLES = 32
#: Steps of a round of theirs, after which such an ESS may be reached.
MOST_STEPS = 2400
#: Draws that a verdict needs, however dear they are.
FEWEST = 2000
#: How much work a fit may be.
EFFORTS = "quick", "default", "thorough"


@dataclass(frozen=True)
class Schedule:
    """Sizes of the schedule's parts.

    :param end: the round that fits the affine end alone.
    :param rounds: rounds of the whole flow, run until the ESS is good; with one number of particles, they share one
        compiled step. Those that cover take all their steps: they are for the tails of the weights, which a bound that
        has settled says nothing of.
    :param num_samples: fresh draws for the verdict.
    :param max_ends: rounds of the affine end alone, more than one only while the model's own parameters move.
    :param good_ess: an ESS at which no further round is run.
    :param light_tails: whether k-hat must be below its threshold for that, too.
    :param evident_ess: an ESS at which nothing is trained at all.
    :param work: how many numbers ``num_samples`` draws may take to compute: of a dearer model there are fewer, but
        2,000 at least.
    :param visits: how many times more often than by default a fit by minibatches visits each row.
    """

    end: Round = field(default_factory=lambda: Round(800, 64, 2e-2, share=0.3))
    rounds: Sequence[Round] = (
        Round(600, 128, 5e-3, settles=True),
        Round(2400, 128, 3e-3, settles=True),
        Round(4800, 128, 2e-3, covering=True),
    )
    num_samples: int = 22_500
    max_ends: int = 30
    good_ess: float = 0.95
    light_tails: bool = True
    evident_ess: float = 0.97
    work: float = 2e9
    visits: float = 1.0

    @staticmethod
    def of_effort(effort: str) -> "Schedule":
        """The schedule of an effort: without a flow, the default one, or one of more rounds and draws.

        :param effort: ``"quick"``, ``"default"`` or ``"thorough"``.

        Example::

            >>> [len(Schedule.of_effort(effort).rounds) for effort in EFFORTS]
            [0, 3, 4]
        """
        plain = Schedule()
        if effort == "quick":
            end = replace(plain.end, num_steps=300, share=1.0)
            return Schedule(end, (), num_samples=4000, max_ends=3, light_tails=False, work=2e8)
        if effort == "thorough":
            rounds = (*plain.rounds, Round(9600, 128, 1e-3, covering=True))
            return Schedule(plain.end, rounds, 4 * plain.num_samples, good_ess=0.98, work=4 * plain.work, visits=2.0)
        return plain

    @staticmethod
    def of_modes() -> "Schedule":
        """For a flow that starts from modes that were found."""
        sizes = (1200, 3e-3, False), (1600, 1e-3, True), (4000, 1e-3, True)
        return Schedule(rounds=[Round(n, 128, step_size, covering=late, balanced=True) for n, step_size, late in sizes])

    @staticmethod
    def of(num_steps: int | None, num_particles: int, annealing: float) -> "Schedule":
        """The default, or so many steps of the flow, whatever they reach.

        The last quarter of these is covering, unless annealed.

        :param num_steps: None for the default, or 4,000 if another argument is not left to it.
        :param num_particles: 1 for the default.
        :param annealing: share of the steps.
        """
        if num_steps is None and num_particles == 1 and not annealing:
            return Schedule()
        num_steps, num_particles = num_steps or 4000, num_particles if num_particles > 1 else 128
        end = Round(min(800, max(1, num_steps // 2)), 64, 2e-2, share=0.3)
        last = 0 if annealing else num_steps // 4
        rounds = [Round(num_steps - last, num_particles, 3e-3, annealing, balanced=annealing > 0)]
        if last:
            rounds.append(Round(last, num_particles, 1e-3, covering=True))
        return Schedule(end, rounds, max_ends=1, good_ess=math.inf)

    def for_work(self, work: int) -> "Schedule":
        """With as many draws as are worth their cost, for a log density of so much work.

        Where these are fewer, a step of 128 particles costs as much as some hundreds of draws that are worth something,
        and weights that are worth most of the draws are enough.

        :param work: numbers to compute for one draw; see :func:`~pyro_nflows.engine.work.work_of`.

        Example::

            >>> Schedule().for_work(1000).num_samples, Schedule().for_work(500_000).num_samples
            (22500, 4000)
            >>> Schedule().for_work(1000).good_ess, Schedule().for_work(500_000).good_ess
            (0.95, 0.6)
        """
        most = max(FEWEST, int(self.work / work)) if work else self.num_samples
        if most >= self.num_samples:
            return self
        made = replace(self, num_samples=most)
        return made.ending_at() if self.has_flow else made

    def for_latents(self, num: int, is_full: bool = False, is_sparse: bool = False) -> "Schedule":
        """For a joint flow of so many latents: of many, weights that are worth most of the draws are enough.

        A mean over draws has then all the precision that anybody reads, and the rest of the ESS would cost most of the
        time. With a full or sparse matrix of hundreds of latents or more, what a chain's draws are worth at best is
        enough; and with a sparse one, steps have fewer particles: on a chain of 2,500 states, as many steps of 32 as of
        128 lead to the same ESS.

        :param is_full: whether its affine end is a full matrix.
        :param is_sparse: or a sparse one.

        Example::

            >>> Schedule().for_latents(10).good_ess, Schedule().for_latents(100).good_ess
            (0.95, 0.6)
            >>> Schedule().for_latents(1600, is_full=True).good_ess
            0.3
            >>> [part.num_particles for part in Schedule().for_latents(1600, is_sparse=True).rounds]
            [32, 32, 32, 32]
        """
        if num <= MANY:
            return self
        if num <= LARGE or not (is_full or is_sparse):
            return self.ending_at()
        made = self.ending_at(LARGE_ESS)
        if not is_sparse or made is self:
            return made
        return replace(made, rounds=[replace(part, num_particles=FEW_PARTICLES) for part in made.rounds])

    def ending_at(self, ess: float = MANY_ESS) -> "Schedule":
        """With an ESS at which training ends, where another one was not asked for; a long round is then two.

        Example::

            >>> [part.num_steps for part in Schedule().ending_at().rounds]
            [600, 2400, 2400, 2400]
        """
        if self.good_ess not in (Schedule.good_ess, MANY_ESS):
            return self
        rounds = [half for part in self.rounds for half in part.halves(MOST_STEPS)]
        return replace(self, rounds=rounds, good_ess=ess, evident_ess=ess)

    def after_rounds(self, number: int) -> str:
        """What comes after so many rounds of the flow, in words.

        Example::

            >>> Schedule().after_rounds(0), Schedule.of(1000, 1, 0.0).after_rounds(1)
            ('up to 7,800 steps of the flow, if the weights ask for it', '250 more steps')
        """
        left = sum(part.num_steps for part in self.rounds[number:])
        if not left:
            return "the search for other modes"
        steps = f"{left:,} more steps" if number else f"{left:,} steps of the flow"
        return f"up to {steps}, if the weights ask for it" if self.is_default else steps

    @property
    def has_flow(self) -> bool:
        """Whether there are rounds of the flow."""
        return bool(self.rounds)

    @property
    def is_default(self) -> bool:
        """Whether sizes are left to the schedule, which may go on until the draws are good."""
        return self.good_ess < math.inf


def suited(schedule: Schedule, trainer: Trainer, layer: Whitened) -> Schedule:
    """A schedule for what a draw of a layer costs, and for its number of latents.

    :param schedule: as it was asked for.
    :param trainer: has the model.
    :param layer: to be trained.
    """
    size = sum(parameter.numel() for parameter in layer.parameters())
    schedule = schedule.for_work(size + work_of(trainer.log_joint, layer.end.loc))
    if isinstance(layer.end, PlateAffine):
        return schedule
    is_full, is_sparse = isinstance(layer.end, TriangularAffine), isinstance(layer.end, SparseAffine)
    return schedule.for_latents(layer.input_dim, is_full, is_sparse)
