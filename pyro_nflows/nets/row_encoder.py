"""An encoder of what is observed in a row, and the row's numbers as a function of it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

#: An optimiser's step on a number of the head moves the row's number by so much of the step.
HEAD_STEP = 0.3


class RowInput(NamedTuple):
    """What one site shows in each row.

    :param name: of the site.
    :param is_set: whether a row has several observations, in no order.
    :param width: numbers of one observation.
    """

    name: str
    is_set: bool
    width: int


class RowEncoder(nn.Module):
    """Features of a row's observations: those of sets by their mean over a network of each [1].

    :param inputs: what there is in a row.
    :param hidden_dim: width of the networks.

    Example::

        >>> encoder = RowEncoder([RowInput("y", True, 2)])
        >>> encoder({"y": torch.randn(5, 10, 2)}).shape, encoder.output_dim
        (torch.Size([5, 34]), 34)

    **References**

    [1] M. Zaheer et al. (2017). Deep Sets.
    """

    def __init__(self, inputs: Sequence[RowInput], hidden_dim: int = 32):
        super().__init__()
        self.inputs = list(inputs)
        width, num_sets = sum(part.width for part in inputs), sum(part.is_set for part in inputs)
        self.each = nn.ModuleDict(
            {str(i): _network(part.width, hidden_dim) for i, part in enumerate(inputs) if part.is_set}
        )
        self.all = _network(width + num_sets * hidden_dim, hidden_dim)
        self.output_dim = hidden_dim + width

    def forward(self, data: Mapping[str, Tensor]) -> Tensor:
        """``data`` has ``(num_rows, num_observations, width)`` for each input."""
        plain = [data[part.name].mean(-2) for part in self.inputs]
        sets = [net(data[self.inputs[int(i)].name]).mean(-2) for i, net in self.each.items()]
        return torch.cat([self.all(torch.cat([*plain, *sets], -1)), *plain], -1)


class RowNumbers(nn.Module):
    """The numbers that rows have of their own, as a function of what is observed in them; zero at first.

    :param inputs: what there is in a row.
    :param num_features: of the encoder.
    :param num_numbers: of a row.
    :param encoder: from a row's data, as they are, to ``(num_rows, num_features)``: a tensor ``(num_rows, ...)``, or a
        dict of them where several sites are observed; by default a :class:`RowEncoder` of standardised data.
    """

    def __init__(
        self, inputs: Sequence[RowInput], num_features: int, num_numbers: int, encoder: nn.Module | None = None
    ):
        super().__init__()
        self.inputs, self.is_default = [RowInput(*part) for part in inputs], encoder is None
        self.encoder = RowEncoder(self.inputs) if encoder is None else encoder
        self.head = nn.Linear(num_features, num_numbers)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        for i, part in enumerate(self.inputs):
            self.register_buffer(f"mean_{i}", torch.zeros(part.width))
            self.register_buffer(f"scale_{i}", torch.ones(part.width))

    @torch.no_grad()
    def start(self, data: Mapping[str, Tensor]) -> None:
        """Standardise by these data from now on."""
        for i, part in enumerate(self.inputs):
            flat = data[part.name].reshape(-1, part.width).to(self.head.weight)
            scale = flat.std(0, correction=0)
            self.get_buffer(f"mean_{i}").copy_(flat.mean(0))
            self.get_buffer(f"scale_{i}").copy_(torch.where(scale > 0, scale, 1.0))

    def forward(self, data: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> Tensor:
        """A row's numbers, ``(num_rows, num_numbers)``."""
        return HEAD_STEP * cast(Tensor, self.head(self.features(data, raw)))

    def features(self, data: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> Tensor:
        """What the numbers are linear in, ``(num_rows, num_features)``."""
        given: Any = raw if len(raw) > 1 else next(iter(raw.values()))
        if self.is_default:
            given = {
                part.name: (data[part.name].to(self.head.weight) - self.get_buffer(f"mean_{i}"))
                / self.get_buffer(f"scale_{i}")
                for i, part in enumerate(self.inputs)
            }
        features = self.encoder(given)
        return features if self.is_default else self._features_of_rows(features, len(next(iter(raw.values()))))

    def _features_of_rows(self, features: Any, num_rows: int) -> Tensor:
        """What a user's encoder gave, if that is in the shape in which it gave it first."""
        expected = num_rows, self.head.in_features
        if not isinstance(features, Tensor) or features.shape != expected:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"amortize: the encoder must give features of shape {expected} for {num_rows} rows, as many for each "
                f"row as at first, got {got}"
            )
        return features.to(self.head.weight.dtype)

    @torch.no_grad()
    def put(self, weight: Tensor, bias: Tensor) -> None:
        """Have numbers that are linear in the features: ``weight (num_numbers, num_features)`` and ``bias``."""
        self.head.weight.copy_(weight / HEAD_STEP)
        self.head.bias.copy_(bias / HEAD_STEP)


def _network(input_dim: int, hidden_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim), nn.SiLU())
