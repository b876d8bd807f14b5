r"""Checks that every layer must pass; run them on your own: ``check_layer(lambda: MyLayer(3))``.

Each law is a function of a maker: something without arguments that makes a fresh layer (or a layer, of which copies
are used). A law that the layer breaks raises a :class:`LawError` that names it. All but
:func:`check_identity_at_initialisation` move the parameters away from their start first, and all but
:func:`check_dtypes` work in double precision. What holds on average is tested to five standard errors, with fixed
random numbers.

:func:`check_coordinates` is a law of models: those with hierarchical latents are the same in coordinates informed by
their priors.
"""

from .behaviour import (
    check_copies,
    check_dtypes,
    check_forward_is_pure,
    check_functional_transforms,
    check_gradients_reach_every_parameter,
    check_identity_at_initialisation,
    check_repr,
    check_rows_are_independent,
    check_shapes,
)
from .coordinates import check_coordinates
from .law import LAWS, LawError, Make, fresh, laws_of, perturbed
from .mathematics import (
    check_inverse_undoes_forward,
    check_log_weight_is_slogdet,
    check_mean_log_weight,
    check_path_gradient,
    check_unit_evidence,
)

__all__ = [
    "LAWS",
    "LawError",
    "check_coordinates",
    "check_copies",
    "check_dtypes",
    "check_forward_is_pure",
    "check_functional_transforms",
    "check_gradients_reach_every_parameter",
    "check_identity_at_initialisation",
    "check_inverse_undoes_forward",
    "check_layer",
    "check_log_weight_is_slogdet",
    "check_mean_log_weight",
    "check_path_gradient",
    "check_repr",
    "check_rows_are_independent",
    "check_shapes",
    "check_unit_evidence",
    "fresh",
    "laws_of",
    "perturbed",
]


def check_layer(make: Make, *, starts_at_identity: bool = True) -> None:
    """Run every law that applies to a layer.

    :param make: makes a fresh layer; or a layer, of which copies are used.
    :param starts_at_identity: whether a fresh layer should be the identity, as the layers of a flow are.
    :raises LawError: for the first law that it breaks.

    Example::

        >>> from pyro_nflows.layers import LocScale
        >>> check_layer(lambda: LocScale(2))
        >>> check_layer(LocScale(2, init_scale=3.0))
        Traceback (most recent call last):
        pyro_nflows.testing.law.LawError: LocScale breaks check_identity_at_initialisation: ...
    """
    for law in laws_of(make):
        if starts_at_identity or law is not check_identity_at_initialisation:
            law(make)
