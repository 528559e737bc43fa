"""The methods: each is a set of pieces, and every piece can be chosen apart in the recipe.

| method | initial graph | density | removal | regrowth | source |
|---|---|---|---|---|---|
| dense | none | | | | the control |
| static | BRF | constant | none | none | the control of every sparse method |
| set | random, ERK | constant | 30% by magnitude | random | SET, arXiv 1707.04780 |
| rigl | random, ERK | constant | 30%, cosine, by magnitude | largest dense gradient | RigL, arXiv 1911.11134 |
| mest | random | constant | 30%, cosine, by magnitude + 0.01 gradient | random | MEST, arXiv 2110.14032 |
| gmp | all links | cubic, from 1 | by magnitude | none | GMP, arXiv 1710.01878 |
| granet | random, ERK | cubic, from 0.5 | 50%, cosine, by magnitude | largest dense gradient | GraNet, 2106.10404 |
| cht | random | constant | 30% by magnitude, chains | top CH3-L3p; early stop | CHT, openreview iayEcORsGd |
| chts | BRF | constant | 10%, cosine, sampled by magnitude | sampled by CH2-L3n | CHTs, arXiv 2501.19107 |
| chtss | BRF | sigmoid, from 0.5 | as chts | as chts | CHTss, arXiv 2501.19107 |

SET, RigL and GraNet give layers the densities of their papers (ERK); `distribution: uniform` puts them on an equal
footing with the others layer by layer. CHT is uniform, with the last layer left dense.
"""

from dataclasses import dataclass, replace
from typing import Literal

Method = Literal["dense", "static", "set", "rigl", "mest", "gmp", "granet", "cht", "chts", "chtss"]
TopologyKind = Literal["brf", "bsw", "bsf", "csti", "er", "magnitude", "nonzero"]
Degrees = Literal["fixed", "uniform"]
RemovalScore = Literal["magnitude", "RI", "MEST"]
RemovalRule = Literal["soft", "hard"]
RegrowthScore = Literal["CH2_L3n", "CH3_L3n", "CH2_L3p", "CH3_L3p", "random", "gradient", "none"]
RegrowthRule = Literal["soft", "top"]
FractionKind = Literal["cosine", "constant"]
Schedule = Literal["constant", "sigmoid", "cubic", "linear"]
Distribution = Literal["uniform", "erk"]
Compute = Literal["masked", "links"]


@dataclass(frozen=True)
class Preset:
    """The pieces of a method. The fields are those of the recipe's `sparsity` block."""

    changes: bool = True
    topology: TopologyKind = "er"
    distribution: Distribution = "uniform"
    schedule: Schedule = "constant"
    initial_density: float = 0.5
    removal_score: RemovalScore = "magnitude"
    removal_rule: RemovalRule = "hard"
    chains: bool = False
    regrowth_score: RegrowthScore = "random"
    regrowth_rule: RegrowthRule = "top"
    fraction: FractionKind = "cosine"
    removed: float = 0.3
    early_stop: float = 0.0


_CHTS = Preset(topology="brf", removal_rule="soft", regrowth_score="CH2_L3n", regrowth_rule="soft", removed=0.1)
PRESETS: dict[Method, Preset] = {
    "dense": Preset(changes=False),
    "static": Preset(changes=False, topology="brf", removed=0.1),
    "set": Preset(distribution="erk", fraction="constant"),
    "rigl": Preset(distribution="erk", regrowth_score="gradient"),
    "mest": Preset(removal_score="MEST"),
    "gmp": Preset(schedule="cubic", initial_density=1.0, regrowth_score="none", fraction="constant", removed=0.0),
    "granet": Preset(distribution="erk", schedule="cubic", regrowth_score="gradient", removed=0.5),
    "cht": Preset(chains=True, regrowth_score="CH3_L3p", fraction="constant", early_stop=0.9),
    "chts": _CHTS,
    "chtss": replace(_CHTS, schedule="sigmoid"),
}
