r"""Draws of a model as ArviZ data, with everything that ``az.summary``, ``az.loo`` and ``az.plot_ppc`` ask for.

=========================== ===============================================================================
``posterior``               the draws, and deterministic sites computed from them
``sample_stats``            what the caller knows of each draw, such as ``lp``, ``log_q`` and ``log_weight``
``log_likelihood``          log density of every observation given every draw, factors with rows among them
``log_prior``               log density of every latent site at every draw, in the site's own space
``posterior_predictive``    one replicated data set a draw
``prior``                   latent and deterministic sites drawn from the prior
``prior_predictive``        data drawn from the prior
``observed_data``           the values of the observed sites
``constant_data``           tensors passed to the model that are not the value of an observed site
``unconstrained_posterior`` latent sites without constraints, if asked for
``predictions``             data and deterministic sites at other arguments, if given: these are
                            ``predictions_constant_data``
=========================== ===============================================================================

A dimension is named by its plate, and ``{site}_dim_{i}`` if it has none. The result is an ``InferenceData`` on ArviZ
0.x and an ``xarray.DataTree`` on ArviZ 1.x.
"""

from .export import Options, to_arviz
from .factors import FactorWarning
from .pointwise import Elpd, elpd_of

__all__ = ["Elpd", "FactorWarning", "Options", "elpd_of", "to_arviz"]
