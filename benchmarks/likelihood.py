r"""Maximum likelihood on minibatches, as a program for the engine: a step costs a millisecond or two.

A step is given rows of the data, and beside them the standard normal numbers from which the inverse draws auxiliary
variables. With :math:`M` samples of them it maximises the mean over rows of

.. math:: \log \frac1M \sum_{m=1}^M \frac{q(x_m)}{w_m}, \qquad (x_m, w_m) = \mathrm{inverse}(y, \epsilon_m),

which is the log-likelihood of an exact flow, and a lower bound of it for a continuously indexed one.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyro_nflows import ELBO
from pyro_nflows.engine import Engine, Program, prepare
from pyro_nflows.engine.program import Inputs
from pyro_nflows.engine.runners import Runner
from pyro_nflows.layers.base import Layer
from pyro_nflows.numerics import standard_normal_log_prob
from pyro_nflows.objectives.base import Gradient

#: Steps run in one call of the engine.
BLOCK = 100


def no_model(z: Tensor) -> Tensor:
    """A likelihood is trained on data, not against a model."""
    raise NotImplementedError("a likelihood has no log joint")


class Likelihood(Program):
    """The step that trains a layer on a minibatch.

    :param layer: the flow.
    :param batch_size: rows of a minibatch.
    :param num_samples: :math:`M`, for layers with auxiliary variables.
    """

    def __init__(self, layer: Layer, batch_size: int, num_samples: int = 1):
        super().__init__(no_model, layer, ELBO(), Gradient.TOTAL, batch_size, max_norm=5.0)
        self.num_samples = num_samples

    @property
    def noise_width(self) -> int:
        """A row of data and the noise of its inverses."""
        return self.layer.output_dim + self.num_samples * self.layer.inverse_noise_dim

    def loss(self, params: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Minus the mean log-likelihood, or its bound."""
        y, noise = inputs.noise[:, : self.layer.output_dim], inputs.noise[:, self.layer.output_dim :]

        def log_prob(layer: Layer) -> Tensor:
            if not layer.inverse_noise_dim:
                x, log_weight = layer.inverse(y)
                return standard_normal_log_prob(x) - log_weight
            eps = noise.unflatten(-1, (self.num_samples, -1)).movedim(1, 0)
            x, log_weight = layer.inverse(y.expand(self.num_samples, *y.shape), eps)
            return (standard_normal_log_prob(x) - log_weight).logsumexp(0) - math.log(self.num_samples)

        loss = -self._call(params, log_prob).mean()  # type: ignore[arg-type, attr-defined]
        return loss, loss.detach()


def blocks(
    program: Program, data: Tensor, num_steps: int, rate: float, seed: int, block: int = BLOCK
) -> Iterator[Inputs]:
    """The inputs of every block of steps; the step size falls along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    size, width = program.num_particles, program.noise_width - data.shape[-1]
    turn = torch.arange(num_steps).to(data) / num_steps * math.pi
    for rates in (0.5 * rate * (1 + turn.cos())).split(block):
        rows = data[torch.randint(len(data), (len(rates), size), generator=generator)]
        noise = torch.randn(len(rates), size, width, generator=generator, dtype=data.dtype)
        ones = torch.ones_like(rates)
        yield Inputs(torch.cat([rows, noise], -1), rates, ones, ones)


def maximise(
    layer: Layer,
    data: Tensor,
    num_steps: int,
    *,
    batch_size: int = 256,
    rate: float = 3e-3,
    num_samples: int = 1,
    seed: int = 0,
    runner: Runner | None = None,
    after_block: Callable[[], object] | None = None,
    block: int = BLOCK,
) -> Runner:
    """Start a layer from data and train it on them with Adam.

    :param runner: what another layer of the same shapes returned: then nothing is recorded or compiled again.
    :param after_block: called after each block of steps, when the layer has what they have made of its parameters.
    :param block: how many steps that is.
    :return: what ran the steps.
    """
    layer.initialize(data)
    program, state = Likelihood(layer, batch_size, num_samples), None
    for inputs in blocks(program, data, num_steps, rate, seed, block):
        if state is None:
            runner = prepare(program, Engine.COMPILED, inputs) if runner is None else runner.bound(program, None)
            state = program.init()
        state, _ = runner.run(state, inputs)  # type: ignore[union-attr]
        if after_block is not None:
            program.write(state)
            after_block()
    program.write(state)  # type: ignore[arg-type]
    return runner  # type: ignore[return-value]
