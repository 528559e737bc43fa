"""A study whose runs take no time, for tests of what is done with studies."""

import time
from dataclasses import dataclass

from hebbline.studies.ledger import Ledger
from hebbline.studies.runner import work
from hebbline.studies.study import DENSE, Arm, Claim, Outcome, Run, Study


@dataclass(frozen=True)
class ArithmeticStudy(Study):
    """Scores by a formula: the middle rate is best for tuning, and the score of "chts" is 3 below "static ER"."""

    pause: float = 0.0

    def perform(self, run: Run) -> Outcome:
        time.sleep(self.pause)
        score = {"dense": 10.0, "static ER": 12.0, "chts": 9.0}[run.arm.name] + 0.1 * run.seed
        score += abs(run.rate - 0.2) if run.purpose == "tuning" else run.rate
        return Outcome(score, 1.0, 2, run.density, 0.5)


def arithmetic(**changes) -> ArithmeticStudy:
    settings = {
        "name": "arithmetic",
        "title": "Arithmetic",
        "metric": "score",
        "higher_is_better": False,
        "arms": (DENSE, Arm("static ER", {"method": "static"}), Arm("chts", {"method": "chts"})),
        "densities": (0.5, 0.1),
        "rates": (0.1, 0.2, 0.4),
        "seeds": (1, 2, 3),
        "budget": "none",
        "claims": (
            Claim("chts is better than random", "chts", ("static ER", "dense"), 0.1),
            Claim("random is better than chts", "static ER", ("chts",), 0.1),
        ),
        "note": "Sums.",
    }
    return ArithmeticStudy(**settings | changes)


def finish(ledger: Ledger) -> None:
    work(ledger, lambda made, run: None)
