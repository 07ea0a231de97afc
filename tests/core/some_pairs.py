"""Forty random pairs with every column, and what a recipe makes of them: for what holds whatever the numbers."""

import math
from dataclasses import replace

import torch
from sheets import random_pairs
from torch import Tensor

import marginkit as mk
from marginkit.core.tensors import PairScores

TAU = math.log(999.0)
PAIRS = random_pairs()
AT_START = replace(PAIRS, logp=PAIRS.ref_logp)
ZEROS = torch.zeros(40, dtype=torch.float64)


def paid(recipe: str, scores: PairScores = PAIRS, **options: object) -> Tensor:
    """The loss of each pair."""
    return mk.recipe(recipe, **options)(scores)


def swapped(scores: PairScores) -> PairScores:
    """Chosen and rejected change places, in the scores and in the grades."""
    columns = ("logp", "ref_logp", "length", "rm_head", "log_collision", "grade")
    return replace(scores, **{name: getattr(scores, name).flip(1) for name in columns})
