r"""Variational autoencoders of scikit-learn's digits: flow posteriors that an encoder tells of the image.

    python -m benchmarks.autoencoders [--posteriors NAME ...] [--steps 800] [--seeds 2]

1,797 images of 8 by 8 pixels and 17 levels, which a decoder makes of eight latents: :math:`x_j \sim \mathrm{Binomial}
(16, p_j(z))`, :math:`z \sim N(0, I)`. An encoder gives each image features, of which a linear map makes a normal
distribution of independent latents. From there a flow that reads the features leads to the posterior: a
``FlowDistribution`` at a site of a guide. ``SVI`` trains it all with ``Trace_ELBO``. The splits are those of
:mod:`benchmarks.images`: 1,300 images to train on, 297 to test, others for each seed, the same for all posteriors.
"ELBO" and "IWAE" are bounds of a test image's log-likelihood in nats, higher is better; the second is of 500 draws, and
nearly the log-likelihood itself. Their difference is the gap that the posterior leaves. "Seconds" are of the processor.

A flow is a function from the number of features to a layer: add one to ``POSTERIORS``.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from benchmarks.images import DIM, load
from pyro_nflows import FlowDistribution, flows
from pyro_nflows.layers import Autoregressive, Chain, Conditional, Indexed, Layer

LATENT_DIM, NUM_FEATURES, HIDDEN, LEVELS = 8, 64, 128, 16
#: Draws of each test image, and images at a step.
NUM_DRAWS, BATCH = 500, 100


def planar(context_dim: int) -> Layer:
    """Eight planar layers, whose parameters the features give."""
    return Conditional(flows.planar(LATENT_DIM, 8), context_dim, hidden_dims=())


def iaf(context_dim: int) -> Layer:
    """Four inverse autoregressive layers, whose networks read the features."""
    return flows.iaf(LATENT_DIM, 4, (32,), context_dim=context_dim)


def cif(context_dim: int) -> Layer:
    """Two such layers, with two continuous indices before each."""
    inner = [Autoregressive(LATENT_DIM, reverse=bool(i), hidden_dims=(32,), context_dim=context_dim) for i in range(2)]
    return Chain(*(Indexed(layer, 2, context_dim=context_dim) for layer in inner))


POSTERIORS: dict[str, Callable[[int], Layer] | None] = {"diagonal": None, "planar": planar, "IAF": iaf, "CIF": cif}
"""What comes after a normal distribution of independent latents: a layer that takes so many features as its context."""


class Autoencoder(nn.Module):
    """A decoder, an encoder and a conditional flow, as a model and a guide.

    :param flow: makes the layer of the posterior, or is None.
    """

    def __init__(self, flow: Callable[[int], Layer] | None):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, NUM_FEATURES), nn.SiLU())
        self.decoder = nn.Sequential(nn.Linear(LATENT_DIM, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, DIM))
        self.head = nn.Linear(NUM_FEATURES, 2 * LATENT_DIM)
        self.flow = None if flow is None else flow(NUM_FEATURES)

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        """Of an image's levels, given its latents."""
        return dist.Binomial(LEVELS, logits=self.decoder(z)).to_event(1)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Of the latents of images: a normal distribution of independent latents, and a flow from there."""
        features = self.encoder(x / LEVELS - 0.5)
        loc, log_scale = self.head(features).chunk(2, -1)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        return base if self.flow is None else FlowDistribution(self.flow.at(features), base)

    def model(self, x: Tensor) -> None:
        """Latents, and the images made of them."""
        pyro.module("autoencoder", self)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT_DIM), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """The latents given the images."""
        with pyro.plate("images", len(x)):
            pyro.sample("z", self.posterior(x))

    @torch.no_grad()
    def log_weights(self, x: Tensor, num_draws: int) -> Tensor:
        """Of draws of the latents of each image, ``(num_draws, N)``."""
        posterior = self.posterior(x)
        z = posterior.rsample(torch.Size([num_draws]))
        prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        return self.likelihood(z).log_prob(x) + prior - posterior.log_prob(z)


@dataclass
class Row:
    """One posterior on one split's test images."""

    posterior: str
    seed: int
    params: int
    elbo: float
    iwae: float
    seconds: float

    def __str__(self) -> str:
        gap = self.iwae - self.elbo
        found = f"{self.elbo:>9.2f}{self.iwae:>9.2f}{gap:>7.2f}{self.seconds:>9.0f}"
        return f"{self.posterior:<12}{self.seed:>5}{self.params:>9,}{found}"


HEAD = f"{'posterior':<12}{'seed':>5}{'params':>9}{'ELBO':>9}{'IWAE':>9}{'gap':>7}{'seconds':>9}"


def run(posterior: str, seed: int, steps: int) -> Row:
    """Train an autoencoder with such a posterior, and bound the likelihood of the test images."""
    digits = load(seed)
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    began, vae, x = time.process_time(), Autoencoder(POSTERIORS[posterior]), digits.train.levels
    optim = ClippedAdam({"lr": 2e-3, "lrd": 0.05 ** (1 / steps), "clip_norm": math.inf})
    svi = SVI(vae.model, vae.guide, optim, Trace_ELBO())
    for _ in range(steps):
        svi.step(x[torch.randint(len(x), (BATCH,))])
    seconds, test = time.process_time() - began, digits.test.levels
    log_weight = vae.log_weights(test, NUM_DRAWS)
    iwae = (log_weight.logsumexp(0) - torch.tensor(float(NUM_DRAWS)).log()).mean()
    num_params = sum(parameter.numel() for parameter in vae.parameters())
    return Row(posterior, seed, num_params, float(log_weight.mean()), float(iwae), seconds)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posteriors", nargs="+", choices=POSTERIORS, default=list(POSTERIORS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(argv)
    rows = []
    print(HEAD, flush=True)
    for seed in range(options.seeds):
        for posterior in options.posteriors:
            rows.append(run(posterior, seed, options.steps))
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
