"""The control loop against simulated clusters: what share of their time is training.

    python benchmarks/simulate.py                    all, for docs/performance.md (15 minutes)
    python benchmarks/simulate.py --trace p3 --slots 32 --costs roberta --save-s 3
    python benchmarks/simulate.py --mtbf-h 24 --slots 1000 --slots-per-node 8 --hours 12

The loop is the real one. The first form writes a line a run to benchmarks/simulation.jsonl, and
from these the tables and docs/simulation.svg; the others print one run.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from simulation import arrivals, step_times, tables, young_daly  # noqa: E402
from simulation.run import Simulation  # noqa: E402
from simulation.training import ROBERTA, SMALL, Costs  # noqa: E402

RESULTS = ROOT / "benchmarks" / "simulation.jsonl"
COSTS = {"small": SMALL, "roberta": ROBERTA}
SLOTS_PER_NODE = {32: 1, 1000: 8, 10_000: 8}
NODES_OF_TRACE = 32
NUM_LOSSES = {32: 150, 1000: 40, 10_000: 25}
"""So many are waited for, by slots: days for few slots, minutes for many."""

MTBF_H = {32: (1, 4, 24, 96, 384), 1000: (1, 4, 24, 96, 384), 10_000: (4, 24, 96, 384)}
TRACE_S = {1000: 3600.0, 10_000: 600.0}
SHORTEST_S, LONGEST_S = 600.0, 7 * 86_400.0


def main() -> None:
    if len(sys.argv) > 1:
        simulate_one(parse())
        return
    RESULTS.write_text("")
    for slots in (32, 1000, 10_000):
        write({"steps": slots, **step_times.measure(slots)})
        for costs in COSTS.values():
            for trace in ("p3", "g4dn"):
                for notice_s in (None, 120.0) if slots == 32 else (None,):
                    write(simulate(slots, costs, trace=trace, notice_s=notice_s))
            for mtbf_h in MTBF_H[slots]:
                write(simulate(slots, costs, mtbf_h=mtbf_h))
    tables.write(RESULTS, ROOT / "docs")


def write(result: dict) -> None:
    print(json.dumps(result), flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")


def simulate(
    slots: int,
    costs: Costs,
    *,
    slots_per_node: int | None = None,
    trace: str | None = None,
    mtbf_h: float = 24.0,
    notice_s: float | None = None,
    length_s: float | None = None,
    seed: int = 0,
) -> dict:
    """One run, as a line of results."""
    per_node = slots_per_node or SLOTS_PER_NODE.get(slots, 1)
    num_nodes = max(1, slots // per_node)
    if trace is not None:
        changes = arrivals.bamboo(trace)
        num_copies = round(num_nodes / NODES_OF_TRACE)
        if num_copies > 1:
            changes = arrivals.side_by_side(changes, num_copies)
        length_s = length_s or min(changes[-1].at, TRACE_S.get(slots, changes[-1].at))
    else:
        expected_s = NUM_LOSSES.get(slots, 40) * mtbf_h * 3600 / num_nodes
        length_s = length_s or min(max(expected_s, SHORTEST_S), LONGEST_S)
        changes = arrivals.by_chance(num_nodes, mtbf_h * 3600, length_s, seed=seed)
    run = Simulation(changes, costs, slots, per_node, notice_s, seed).run(length_s)
    return {
        "slots": slots,
        "slots_per_node": per_node,
        "costs": costs.name,
        **({"trace": trace, "notice_s": notice_s} if trace else {"mtbf_h": mtbf_h}),
        "hours": length_s / 3600,
        "outcome": run.outcome,
        "losses": len(run.cluster.losses),
        "stops": run.stops,
        "mtbf_of_job_s": run.mtbf_s,
        "young_daly": young_daly.of(costs, run.mtbf_s),
        "shares": run.ledger.shares(),
    }


def simulate_one(options: argparse.Namespace) -> None:
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Costs)
        if getattr(options, field.name, None) is not None
    }
    result = simulate(
        options.slots,
        dataclasses.replace(COSTS[options.costs], **given),
        slots_per_node=options.slots_per_node,
        trace=options.trace,
        mtbf_h=options.mtbf_h,
        notice_s=options.notice_s,
        length_s=options.hours and 3600 * options.hours,
        seed=options.seed,
    )
    print(f"{result['shares'].pop('training'):8.2%}  training")
    for use, share in result["shares"].items():
        print(f"{share:8.2%}  {use}")
    print(f"{result['young_daly']:8.2%}  training, with checkpoints at Young and Daly's optimum")
    stops = ", ".join(f"{count} {cause}" for cause, count in result["stops"].items())
    print(f"{result['hours']:.1f} hours, {result['losses']} losses, stops: {stops}")
    if result["outcome"]:
        print(f"the run ended: {result['outcome']}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", choices=("p3", "g4dn"), help="of Bamboo; else losses by chance")
    parser.add_argument("--mtbf-h", type=float, default=24.0, help="of a node, in hours")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--slots-per-node", type=int)
    parser.add_argument("--notice-s", type=float, help="how long before it goes a node says so")
    parser.add_argument("--hours", type=float, help="of simulated time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--costs", choices=COSTS, default="small", help="where not given:")
    for field in dataclasses.fields(Costs):
        if field.name != "name":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=float)
    return parser.parse_args()


if __name__ == "__main__":
    main()
