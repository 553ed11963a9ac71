"""What training from checkpoints gets done, at the best time between them."""

from __future__ import annotations

import math

from simulation.training import Costs

UNNOTICED_S = 1.2
"""Until ranks that lost their peers are all known to rest: what the control loop takes, too."""


def of(costs: Costs, mtbf_s: float) -> float:
    """The efficiency at the costs that the simulated loop has."""
    return efficiency(mtbf_s, costs.save_s, costs.restart_s + UNNOTICED_S)


def efficiency(mtbf_s: float, save_s: float, restart_s: float) -> float:
    """Useful time of all time, with failures by chance, as Daly counts it (2006).

    A checkpoint takes `save_s`, and comes every sqrt(2 * save_s * mtbf_s) seconds of work, which is
    Young's optimum (1974). A failure may come at any time, also while training restarts.

    Args:
        mtbf_s: of the whole job.
    """
    if math.isinf(mtbf_s):
        return 1.0
    period_s = math.sqrt(2 * save_s * mtbf_s)
    takes_s = mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1((period_s + save_s) / mtbf_s)
    return period_s / takes_s
