"""Whether rows of one plate share observations of which a run of the model has some, as games of two players do."""

from dataclasses import replace

import torch

from ..system.exclusive import validation
from ..system.randomness import forked
from .bound import BoundModel
from .crossed_terms import CrossedTerms
from .hierarchy import Hierarchy
from .latents import Latents


def with_ties(hierarchy: Hierarchy, bound: BoundModel, latents: Latents) -> Hierarchy:
    """The hierarchy, which is told whether terms of the log joint read several rows of one block.

    :param hierarchy: of all rows.
    :param bound: the model at its arguments, which has some of its observations in each run.
    :param latents: of all rows.
    """
    if hierarchy.subsampled or hierarchy.crosses:
        return hierarchy
    try:
        with validation(False), forked():
            loc = latents.init_loc()
            colours = CrossedTerms(bound, latents, hierarchy).reads_at(loc + torch.randn_like(loc)).colours
    except (RuntimeError, ValueError):  # the model cannot be run there, or its terms read too many rows
        return hierarchy
    return replace(hierarchy, tied=any(bool(colour.any()) for colour in colours))
