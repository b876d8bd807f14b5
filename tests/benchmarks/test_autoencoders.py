"""The autoencoders' benchmark: weights that are exact where the image says nothing, and a row for every posterior."""

import pytest
import torch
from torch.nn.functional import one_hot

from benchmarks import autoencoders
from benchmarks.autoencoders import LEVELS, POSTERIORS, Autoencoder
from benchmarks.images import DIM, Digits, Images

each_posterior = pytest.mark.parametrize("posterior", POSTERIORS)


@each_posterior
def test_where_latents_say_nothing_of_an_image_every_weight_is_its_likelihood(posterior: str) -> None:
    """The posterior is the prior: a fresh flow leaves its base as it is."""
    vae = Autoencoder(POSTERIORS[posterior]).double()
    with torch.no_grad():
        for part in (vae.decoder[-1].weight, *vae.head.parameters()):
            part.zero_()
    x = torch.randint(LEVELS + 1, (5, DIM)).double()
    logits = vae.decoder[-1].bias
    expected = torch.distributions.Binomial(LEVELS, logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(vae.log_weights(x, 4), expected.expand(4, 5))


@each_posterior
def test_every_posterior_has_a_row(posterior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = torch.randint(LEVELS + 1, (40, DIM)).to(torch.get_default_dtype())
    images = Images(levels, one_hot(torch.randint(10, (40,)), 10).to(levels))
    monkeypatch.setattr(autoencoders, "load", lambda seed: Digits(images, images, images.rows(slice(10))))
    row = autoencoders.run(posterior, seed=0, steps=2)
    assert row.elbo < row.iwae < 0
    assert row.params > 10_000
