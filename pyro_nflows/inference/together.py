r"""One run in several processes of ``torch.distributed``: rank 0 runs it, the others help, and all end with its result.

Every rank calls the same line. Rank 0 goes through it as if it were alone, and where something takes long, tells the
others to do their part (:mod:`~pyro_nflows.system.ranks`). They wait for what they are told, and at the end for the
result.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch

from ..checks import first_line
from ..engine import Budget, Engine, History, Journal, Progress
from ..engine.part_of_steps import Chosen, PartOfSteps
from ..engine.shared import Form, follow_steps
from ..engine.shared_minibatches import follow_minibatches
from ..engine.team import joined
from ..engine.trainer import Trainer
from ..guides import AutoFlow
from ..model.log_joint import LogJoint
from ..system.exclusive import seeded, validation
from ..system.ranks import RankError, Ranks, deaf_to_interrupts
from ..system.signals import uninterrupted
from .mark import put
from .minibatch_fit import MinibatchFit
from .minibatch_starts import Starts, terms_of
from .minibatches import Minibatches
from .plan import Plan
from .portable import at_hand, sendable, unpacked
from .posterior import Call
from .resume import described
from .row_team import results
from .running import Fitter
from .workers import done


def agree(who: str, ranks: Ranks, guide: AutoFlow, call: Call, plan: Plan) -> None:
    """Have all ranks compare what they were called with.

    :raises ValueError: on all of them, if something differs.
    """
    if not ranks.has_peers:
        return
    about = {"guide": type(guide).__name__, "dtype": str(torch.get_default_dtype())}
    asked = {name: str(value) for name, value in plan.described().items()}
    found = ranks.gather({**about, **asked, **described(call)})
    for rank, other in enumerate(found):
        for name in {**found[0], **other}:
            if found[0].get(name) != other.get(name):
                raise ValueError(
                    f"{who}: {name} is another one on rank {rank} than on rank 0; give every process the same data and "
                    "settings, or use each_for_itself() for a fit of its own on each"
                )


@contextlib.contextmanager
def leading(ranks: Ranks, guide: AutoFlow, call: Call, result: Callable[[], Any]) -> Iterator[None]:
    """Within it a run may have the help of other ranks; at the end they are given its result, or its error.

    :param result: gives what they are to have.
    """
    if not ranks.has_peers:
        yield
        return
    try:
        with at_hand(guide, call):
            yield
    except RankError:
        raise
    except BaseException as error:
        with contextlib.suppress(RankError), uninterrupted():
            ranks.tell("error", _sendable_error(error))
        raise
    with uninterrupted():
        ranks.tell("result", pickle.dumps(result()))


def _sendable_error(error: BaseException) -> bytes:
    try:
        sent = pickle.dumps(error)
        pickle.loads(sent)
    except Exception:
        sent = pickle.dumps(None)
    if not isinstance(error, Exception) or sent == pickle.dumps(None):
        return pickle.dumps(RankError(f"rank 0 has ended: {type(error).__name__}: {first_line(error)}"))
    return sent


def share(ranks: Ranks, trainer: Trainer, guide: AutoFlow, joint: LogJoint, plan: Plan) -> None:
    """Have the other ranks make a trainer of the same model, and this rank's share with theirs, if they all can.

    :param trainer: of the rank that leads.
    :param guide: in the coordinates of the run.
    :param joint: the model.
    :param plan: of the run.
    """
    if not ranks.has_peers or guide.needs_model:
        return
    with uninterrupted():
        ranks.tell("model", pickle.dumps((sendable(guide, joint.bound.call), joint.start, plan.engine, plan.seed or 0)))
        reasons = [reason for reason in ranks.gather(None) if reason]
    if reasons:
        raise RuntimeError(f"VI.run: a rank cannot run the model as rank 0 does: {reasons[0]}")
    trainer.join(ranks)


def share_rows(ranks: Ranks, guide: AutoFlow, call: Call, engine: Engine | None) -> None:
    """Have the other ranks make a fit by minibatches of the same model.

    :param guide: follows the plates.
    :param engine: asked for, or None for the fastest.
    """
    if not ranks.has_peers:
        return
    with uninterrupted():
        ranks.tell("rows_of", pickle.dumps((sendable(guide, call), (guide.build, guide.row_build), engine)))
        reasons = [reason for reason in ranks.gather(None) if reason]
    if reasons:
        raise RuntimeError(f"VI.run: a rank cannot run the model as rank 0 does: {reasons[0]}")


def followed(ranks: Ranks, guide: AutoFlow, call: Call) -> Any:
    """Do what rank 0 says, until it has a result.

    :return: the result.
    :raises RankError: if rank 0 has ended; or the error that ended its run.
    """
    with at_hand(guide, call), deaf_to_interrupts(), contextlib.ExitStack() as stack:
        follower = Follower(ranks, stack)
        try:
            while True:
                name, content = ranks.hear()
                if name == "result":
                    return pickle.loads(content[0])
                if name == "error":
                    raise pickle.loads(content[0])
                getattr(follower, name)(*content)
        except RankError:
            raise
        except Exception:
            if name != "error":
                ranks.leave()  # rank 0 would wait for this one
            raise
        finally:
            follower.close()


class Follower:
    """What a rank that does not lead has of a run.

    :param ranks: the processes.
    :param stack: ends with the run.
    """

    def __init__(self, ranks: Ranks, stack: contextlib.ExitStack):
        self.ranks, self._stack = ranks, stack
        self._trainer: Trainer | None = None
        self._parts: dict[int, PartOfSteps] = {}
        self._rows: MinibatchFit[Any] | None = None

    def model(self, sent: bytes) -> None:
        """Make the model in the coordinates of the run, and a trainer of it."""
        reason = None
        try:
            packed, begins, engine, seed = pickle.loads(sent)
            guide, call, _ = unpacked(packed)
            self._stack.enter_context(seeded(seed + self.ranks.rank))  # for numbers that the model draws
            _, self._trainer = Fitter(guide).alone(Plan(engine=engine), call, begins)
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
        self.ranks.gather(reason)

    def program(self, number: int, sent: bytes) -> None:
        """Prepare a part of the steps of a program."""
        reason, trainer = None, self._need()
        try:
            form: Form = pickle.loads(sent)
            own = PartOfSteps(self.ranks, form.program(trainer.log_joint, trainer.leaves), form.engine)
            own.prepare()
            self._parts[number] = own
        except Exception as error:
            reason = first_line(error)
        self.ranks.gather(reason)

    def expect(self, number: int, num_steps: int) -> None:
        """Compile it, if so many steps are worth that."""
        self._parts[number].expect(num_steps)

    def steps(self, number: int, num_steps: int, weighs: bool) -> None:
        """Take some of them."""
        follow_steps(self._parts[number], num_steps, weighs)

    def expect_draws(self, sent: bytes, num_samples: int) -> None:
        """Compile draws, if so many are worth that."""
        self._need().sampler.expect(pickle.loads(sent), num_samples)

    def draws(self, sent: bytes) -> None:
        """Make a part of some draws."""
        layer, parts, leaves = pickle.loads(sent)
        trainer = self._need()
        with torch.no_grad():
            put(trainer.leaves, leaves)
        joined(self.ranks, trainer.sampler.at(layer, parts[self.ranks.rank - 1]))

    def rows_of(self, sent: bytes) -> None:
        """Make a fit by minibatches, of which others take the steps."""
        reason = None
        try:
            packed, builds, engine = pickle.loads(sent)
            guide, call, _ = unpacked(packed)
            guide.build, guide.row_build = builds
            self._stack.enter_context(validation(False))
            plan, terms = Plan(engine=engine, workers=self.ranks), terms_of(guide, call)
            parts = terms.leaves(), Budget(), Progress(False), Journal()
            self._rows = Starts(guide, terms, plan, History(), *parts).fresh(0)
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
        self.ranks.gather(reason)

    def row_steps(self, stage: int, sent: bytes, engine: Engine | None, num_steps: int) -> None:
        """Prepare a part of steps by minibatches, and take it until there are no more."""
        reason, fit = None, self._need_rows()
        try:
            layer, rows, other = pickle.loads(sent)
            program, _ = fit.program(stage)
            program.layer.load_state_dict(layer)
            own = PartOfSteps(self.ranks, program, engine, Chosen(fit.terms.choose, rows, other))
            own.prepare()
        except Exception as error:
            reason = first_line(error)
        if any(self.ranks.gather(reason)):
            return
        try:
            own.expect(num_steps)
            follow_minibatches(own)
        finally:
            own.cancel()

    def rows_are(self, sent: bytes) -> None:
        """Take over the numbers of all rows, and be ready for draws of them."""
        layer, leaves, num = pickle.loads(sent)
        fit = self._need_rows()
        fit.of_rows.weighed.load_state_dict(layer)
        with torch.no_grad():
            put(fit.leaves, leaves)
        if num:
            cast(Minibatches, fit).collapser.ratios.expect(num)

    def rows(self, sent: bytes) -> None:
        """Go through some minibatches of rows."""
        name, work, shares = pickle.loads(sent)
        self.ranks.gather(results(work, getattr(self._need_rows(), name), shares[self.ranks.rank]))

    def work(self, sent: bytes) -> None:
        """Do some pieces of work."""
        task, shares = pickle.loads(sent)
        self.ranks.gather(done(task, shares[self.ranks.rank]))

    def _need(self) -> Trainer:
        if self._trainer is None:
            raise RankError("rank 0 asks for steps before it has told of the model")
        return self._trainer

    def _need_rows(self) -> MinibatchFit[Any]:
        if self._rows is None:
            raise RankError("rank 0 asks for minibatches before it has told of the model")
        return self._rows

    def close(self) -> None:
        """Wait no more for compilers that are still at work."""
        for part in self._parts.values():
            part.cancel()
        if self._trainer is not None:
            self._trainer.close()
