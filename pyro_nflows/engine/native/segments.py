"""A plan's steps in segments: within one, threads go through the steps without waiting for each other.

Particles are independent of each other through most of a step of training. So the steps are cut along the particles,
and follow each other in one segment until one needs what belongs to all particles, such as a gradient in weights.
Those are put off until nothing else is left, and then share one segment as well: what is not cut is done whole by one
thread or another. Where a segment ends, all threads wait.

How the work is divided depends on the program and on the number of threads, and no number that is computed does.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from .parts import renumber
from .plan import Buffer, Extern, Loop, Loops, Ref, Step, refs_of
from .shares import UNIT, Cut, Share, Touch, cuts, length_of, touches
from .turns import SECONDS, seconds

#: Seconds of a step, by the plan's own count, from which on threads are worth it.
WORTH = 2e-3
#: Seconds of a segment from which on it is.
WORTH_SEGMENT = 1e-5
#: Owners' places are in so many parts of a segment's work.
PLACES = 1024


@dataclass(eq=False)
class Owner:
    """What one thread does by itself in a segment; ``place`` says which of them."""

    cost: float = 0.0
    place: int = 0


@dataclass(eq=False)
class Part:
    """A step in a segment: cut, or whole and some owner's."""

    step: Step
    cut: Cut | None
    owner: Owner | None


@dataclass(eq=False)
class Segment:
    """Steps that threads go through without waiting for each other; by one thread if ``alone``."""

    parts: list[Part] = field(default_factory=list)
    cost: float = 0.0
    touched: dict[Buffer, list[tuple[Touch, Owner | None]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def alone(self) -> bool:
        return self.cost < WORTH_SEGMENT or isinstance(self.parts[0].step, Extern)

    def takes(self, found: list[Touch]) -> bool:
        """Whether a cut step need not wait for anything in it."""
        return not any(True for touch in found for _ in self._conflicts(touch))

    def owner_for(self, found: list[Touch]) -> Owner | None:
        """Whose a whole step can be; None if it has to wait."""
        owners = {owner for touch in found for owner in self._conflicts(touch)}
        if not owners:
            return Owner()
        return owners.pop() if len(owners) == 1 else None

    def _conflicts(self, touch: Touch) -> Iterator[Owner | None]:
        """With whose a touch must not be at the same time; None stands for every thread's."""
        for other, owner in self.touched.get(touch.buffer, ()):
            apart = touch.first >= other.last or other.first >= touch.last
            alike = owner is None and touch.share is not None and touch.share == other.share
            both = touch.writes and other.writes
            if not (apart or alike or (both and touch.buffer.apart)) and (touch.writes or other.writes):
                yield owner

    def local(self) -> dict[Buffer, Share]:
        """Buffers of which each thread touches only its own share, and that share."""
        found = {}
        for buffer, entries in self.touched.items():
            shares = {None if owner else touch.share for touch, owner in entries}
            share = shares.pop() if len(shares) == 1 else None
            if share is not None and share.phase == 0:
                found[buffer] = share
        return found

    def add(self, part: Part, found: list[Touch]) -> None:
        self.parts.append(part)
        self.cost += seconds(part.step)
        if part.owner is not None:
            part.owner.cost += seconds(part.step)
        for touch in found:
            entry = (touch, part.owner)
            if entry not in self.touched[touch.buffer]:
                self.touched[touch.buffer].append(entry)


def segments(plan: Loops, given: Sequence[Ref] = ()) -> tuple[list[Segment], int] | None:
    """A plan's steps in segments, in a new order, and the number of particles; None where threads are not worth it.

    The plan's own steps, and where its buffers are read and written, are changed to that order.

    :param given: what each step is given anew: particles are the rows of a matrix among these, such as noise.
    """
    if sum(map(seconds, plan.steps)) < WORTH:
        return None
    size = _particles(plan.steps, {ref.meta.shape[0] for ref in given if ref.meta.dim() > 1})
    plan.steps = [made for step in plan.steps for made in _apart(step, size)]
    renumber(plan)
    made = list(_arranged(plan, size))
    plan.steps = [part.step for segment in made for part in segment.parts]
    renumber(plan)
    for segment in made:
        _place(segment)
    return made, size


def _particles(steps: Sequence[Step], rows: Collection[int]) -> int:
    """The number of indices along which most of the steps can be cut.

    :param rows: numbers that it is one of, if steps can be cut along any of these: layers as wide as there are latents
        have more dimensions of that size than of the other.
    """
    votes = Counter(n for step in steps for n in set(_sizes(step)) if n >= 2 * UNIT and length_of(n))
    likely = Counter({n: num for n, num in votes.items() if n in rows}) or votes
    return likely.most_common(1)[0][0] if likely else 0


def _sizes(step: Step) -> Sequence[int]:
    if isinstance(step, Loop):
        return step.shape
    return tuple(n for ref in refs_of(step)[1] for n in ref.meta.shape) if not isinstance(step, Extern) else ()


def _apart(step: Step, size: int) -> Iterator[Step]:
    """A loop's sums over particles in a loop of their own, so that the rest can be cut along them."""
    if not isinstance(step, Loop) or size not in step.shape or step.closed:
        yield step
        return
    d = step.shape.index(size)
    rest = [s for s in step.statements if s.out.strides[d]]
    sums = [s for s in step.statements if not s.out.strides[d]]
    if not (rest and sums):
        yield step
        return
    step.statements = rest
    yield step
    yield Loop(step.shape, sums)


def _dependencies(plan: Loops) -> list[set[int]]:
    """Of each step, those that must come before it."""
    needed = [set[int]() for _ in plan.steps]
    for buffer in plan.buffers:
        if buffer.constant is not None:
            continue
        events = sorted([*((i, False) for i in buffer.reads), *((i, True) for i in buffer.writes)])
        written, read = list[int](), list[int]()
        for i, writes in events:
            needed[i].update(j for j in written if j != i and not (writes and buffer.apart))
            if writes:
                needed[i].update(j for j in read if j != i)
            (written if writes else read).append(i)
    externs = [i for i, step in enumerate(plan.steps) if isinstance(step, Extern)]
    for before, after in zip(externs, externs[1:]):
        needed[after].add(before)
    return needed


def _arranged(plan: Loops, size: int) -> Iterator[Segment]:
    """As many steps as can go without waiting, in their order; then the next ones."""
    steps, needed = plan.steps, _dependencies(plan)
    ways = [
        [(cut, touches(step, cut)) for cut in (*([] if isinstance(step, Extern) else cuts(step, size)), None)]
        for step in steps
    ]
    left, done = list(range(len(steps))), set[int]()
    while left:
        segment, later = Segment(), list[int]()
        for i in left:
            if segment.cost > SECONDS or not needed[i] <= done or not _join(segment, steps[i], ways[i]):
                later.append(i)
            else:
                done.add(i)
                if isinstance(steps[i], Extern):
                    later += left[left.index(i) + 1 :]
                    break
        yield segment
        left = later


def _join(segment: Segment, step: Step, ways: list[tuple[Cut | None, list[Touch]]]) -> bool:
    """Put a step into a segment, if it need not wait there."""
    if isinstance(step, Extern):
        if not segment.parts:
            segment.add(Part(step, None, None), ways[0][1])
        return len(segment.parts) == 1 and segment.parts[0].step is step
    for cut, found in ways:
        if cut is not None and segment.takes(found):
            segment.add(Part(step, cut, None), found)
            return True
        owner = segment.owner_for(found) if cut is None and len(ways) == 1 else None
        if owner is not None:
            segment.add(Part(step, None, owner), found)
            return True
    return False


def _place(segment: Segment) -> None:
    """Give owners their places, so that what each thread has to do takes about as long."""
    owners = list(dict.fromkeys(part.owner for part in segment.parts if part.owner is not None))
    total, before = math.fsum(owner.cost for owner in owners), 0.0
    for owner in owners:
        owner.place = min(PLACES - 1, int(PLACES * (before + owner.cost / 2) / total)) if total else 0
        before += owner.cost
