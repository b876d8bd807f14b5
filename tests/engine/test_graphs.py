"""CUDA graphs give what the recording gives, step by step; without a GPU, all but the capture is tested."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pyro_nflows.engine import graphs
from pyro_nflows.engine.compiling import Compiling
from pyro_nflows.engine.graphs import Graph, GraphRun
from pyro_nflows.engine.native.scan import Halted
from pyro_nflows.engine.replayed import PAYS, Replayed
from pyro_nflows.engine.tape import Tape

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def turned(a: Tensor, b: Tensor, x: Tensor, n: Tensor) -> list[Tensor]:
    """Carries one tensor into another's place, unchanged, which a graph must not overwrite too early."""
    return [b, a, (a + x).sin() * n, x[0]]


def example(device: str) -> tuple[list[Tensor], list[Tensor]]:
    """What is carried, and inputs of seven steps."""
    state = [torch.arange(3.0, device=device), torch.ones(3, device=device)]
    steps = torch.arange(21.0, device=device).view(7, 3)
    return state, [steps, torch.arange(7, device=device)]


def one_by_one(
    tape: Tape, num_carried: int, state: list[Tensor], streams: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """What is right."""
    found = []
    for row in zip(*streams):
        results = tape.run([*state, *row])
        state = results[:num_carried]
        found.append(results[num_carried:])
    return state, [torch.stack(parts) for parts in zip(*found)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("most", [1, 3, 64])
def test_a_block_is_its_steps_one_by_one(device: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_STEPS", most)
    state, streams = example(device)
    tape = Tape(turned, [*state, *(stream[0] for stream in streams)])
    run = GraphRun(Graph(tape, 2, torch.device(device)))
    right = one_by_one(tape, 2, state, streams)
    for _ in range(2):  # and again, from the same state
        found = run.run(state, streams)
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("device", DEVICES)
def test_results_are_the_callers_own(device: str) -> None:
    state, streams = example(device)
    run = GraphRun(Graph(Tape(turned, [*state, *(stream[0] for stream in streams)]), 2, torch.device(device)))
    first = run.run(state, streams)
    kept = [part.clone() for parts in first for part in parts]
    run.run([tensor + 1 for tensor in state], streams)
    torch.testing.assert_close([part for parts in first for part in parts], kept)


@pytest.mark.parametrize("device", DEVICES)
def test_other_data_in_the_same_recording(device: str) -> None:
    data = torch.ones(3, device=device)
    x = torch.arange(6.0, device=device).view(2, 3)
    tape = Tape(lambda x: [x * data.exp()], [x[0]], [data])
    graph = Graph(tape, 0, torch.device(device))
    other = GraphRun(graph, tape.bound([2 * data]))
    torch.testing.assert_close(other.run([], [x])[1][0], x * (2 * data).exp())
    torch.testing.assert_close(GraphRun(graph).run([], [x])[1][0], x * data.exp())


@pytest.mark.parametrize("device", DEVICES)
def test_a_recording_goes_over_to_a_graph(device: str) -> None:
    x = torch.arange(3.0, device=device)
    replayed = Replayed(Tape(lambda x: [x.sin(), x], [x]), torch.device(device))
    for number in range(PAYS + 3):
        sine, same = replayed.run([x + number])
        torch.testing.assert_close((sine, same), ((x + number).sin(), x + number))


def test_another_thread_may_have_it_stop() -> None:
    state, streams = example("cpu")
    run = GraphRun(Graph(Tape(turned, [*state, *(stream[0] for stream in streams)]), 2, torch.device("cpu")))
    run.halted = True
    with pytest.raises(Halted):
        run.run(state, streams)


def test_what_changes_tensors_in_place_is_refused() -> None:
    def changes(x: Tensor) -> list[Tensor]:
        y = torch.zeros(3)
        view = y[:1]
        view.add_(x[:1])
        return [y * x]

    tape = Tape(changes, [torch.ones(3)])
    assert not tape.pure
    with pytest.raises(NotImplementedError, match="in place"):
        Graph(tape, 0, torch.device("cpu"))


@pytest.mark.gpu
def test_what_waits_for_the_device_is_refused_and_the_device_goes_on() -> None:
    def waits(x: Tensor) -> list[Tensor]:
        return [torch.linalg.eigvalsh(x @ x.T + torch.eye(3, device="cuda"))]

    x = torch.arange(9.0, device="cuda").view(3, 3)
    compiling = Compiling(Tape(waits, [x]), 0, x)
    compiling.start()
    run = compiling.take(lambda run: None)
    assert (run is None) == (compiling.refused is not None)
    torch.testing.assert_close(x.sum().cpu(), torch.tensor(36.0))


@pytest.mark.gpu
def test_the_random_numbers_of_a_step_are_new_ones_each_time_and_the_seeds() -> None:
    x = torch.zeros(5, 1000, device="cuda")
    run = GraphRun(Graph(Tape(lambda x: [x + torch.randn_like(x)], [x[0]]), 0, x.device))
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(run.run([], [x])[1][0])
    torch.testing.assert_close(draws[0], draws[1])
    assert float(draws[0].var(0).min()) > 0
    assert abs(float(draws[0].mean())) < 5 / 5000**0.5
