"""Journals as a run writes them, made up: for tests of what is told of them."""

import dataclasses
import random

import hypothesis.strategies as st


@dataclasses.dataclass
class Made:
    """A journal under way, at a time."""

    now: float = 1000.0
    run: str = "a"
    generation: int = 0
    size: int = 0
    update: int = 0
    lines: list = dataclasses.field(default_factory=list)

    def write(self, kind, after=0.0, **details):
        self.now += after
        line = {
            "time": round(self.now, 3),
            "kind": kind,
            "generation": self.generation,
            "world_size": self.size,
            "update": self.update,
            "cause": None,
            "run": self.run,
        }
        self.lines.append(line | details)
        return self

    def come(self, *workers, after=0.0, ready_after=0.0):
        self.write("slots", after, came={w: f"node-{w}" for w in workers})
        return self.write("slots", ready_after, ready=list(workers))

    def begin(self, *workers, source=None, started=0.1, advanced=0.4):
        self.generation, self.size = self.generation + 1, len(workers)
        self.write("beginning", workers=list(workers), **{"from": source})
        ranks = [{"rank": r, "node": f"node-{w}", "pid": r} for r, w in enumerate(workers)]
        self.write("started", started, ranks=ranks)
        if advanced is not None:
            self.update = max(self.update, (source or 0) + 1)
            self.write("advanced", advanced)
        return self

    def progress(self, update, after=0.0, final=False, logged=None, **seconds):
        self.update = max(self.update, update)
        more = {"logged": logged} if logged else {}
        return self.write(
            "progress", after, seconds=seconds, final=final, **more | {"update": update}
        )

    def stop(self, cause, hold=0.0, node=None, **final):
        """`final`: what is told at rest; none: nobody is left who could."""
        self.write("stopping")
        self.now += hold
        if final:
            update = final.pop("update")
            self.progress(update, final=True, **final)
        return self.write("stopped", cause=cause, node=node)

    def end(self, kind="finished", after=0.0):
        codes = {"finished": 0, "failed": 1, "interrupted": 143}
        return self.write(kind, after, cause=f"it {kind}", exit_code=codes[kind])


CAUSES = (
    "RESIZED",
    "PREEMPTED",
    "TAKEN_OVER",
    "LOST: rank 1 (on node abc) was killed by SIGKILL",
    "HUNG: no progress for 30 s",
    "FAILED: rank 0 raised ValueError",
)

seconds = st.floats(0, 1e5)
names = st.integers(0, 5).map("worker-{}".format)
workers = st.lists(names, max_size=4, unique=True)
tallies = st.fixed_dictionaries(
    {},
    optional={
        name: seconds
        for name in ("loading", "training", "data", "validating", "saving", "in_flight")
    },
)


@st.composite
def lines(draw):
    """Any lines in any order: those of a run of any version, and of one that is wrong."""
    made = Made()
    for _ in range(draw(st.integers(1, 25))):
        made.run = draw(st.sampled_from("aaab"))
        made.generation = draw(st.integers(0, 4))
        made.size = draw(st.integers(0, 4))
        made.update = draw(st.integers(0, 50))
        made.now += draw(st.one_of(st.just(0.0), seconds, st.floats(-10, 0)))
        kind = draw(st.sampled_from("slots beginning started advanced progress end else".split()))
        names = draw(workers)
        match kind:
            case "slots":
                key = draw(st.sampled_from(["came", "there", "ready", "gone"]))
                has_nodes = key in ("came", "there")
                made.write(
                    "slots", **{key: {n: f"node-{n}" for n in names} if has_nodes else names}
                )
            case "beginning":
                source = draw(st.none() | st.integers(0, 50))
                made.write("beginning", workers=names, **{"from": source})
            case "started":
                made.write("started", ranks=[{"rank": r, "node": n} for r, n in enumerate(names)])
            case "progress":
                made.write("progress", seconds=draw(tallies), final=draw(st.booleans()))
            case "end":
                made.end(draw(st.sampled_from(["finished", "failed", "interrupted"])))
            case "else":
                kind = draw(st.sampled_from(["waiting", "stopping", "stopped", "stacks", "odd"]))
                made.write(kind, cause=draw(st.sampled_from(CAUSES)))
            case _:
                made.write(kind)
    return made.lines


def long_run(num_lines=10_000, num_slots=64, seed=1):
    """A run of days: workers come and go, and nothing lasts."""
    rng = random.Random(seed)
    made = Made()
    there = [f"worker-{n}" for n in range(num_slots)]
    made.come(*there, ready_after=5)
    number = num_slots
    while len(made.lines) < num_lines:
        made.begin(*there, source=made.update, advanced=0.8)
        trained = rng.expovariate(1 / 60)
        made.progress(
            made.update + int(trained * 10) + 1,
            after=trained,
            loading=0.5,
            training=trained * 0.97,
            data=trained * 0.01,
            logged={"update": made.update, "loss": 2 + 8 / (1 + made.update / 1e4), "lr": 1e-3},
        )
        made.write("checkpoint", path="save/checkpoint_last.pt")
        if rng.random() < 0.6 and len(there) < num_slots:
            made.come(f"worker-{number}", ready_after=6)
            there.append(f"worker-{number}")
            number += 1
            made.stop("RESIZED", 0.2, update=made.update, training=trained)
            continue
        lost = there.pop(rng.randrange(len(there))) if len(there) > 2 else None
        made.stop(
            f"LOST: rank 1 (on node {lost}) was killed by SIGKILL",
            0.2,
            node=f"node-{lost}",
            update=made.update,
            loading=0.5,
            training=trained * 0.97,
            in_flight=0.05,
        )
        if lost:
            made.write("slots", gone=[lost])
    return made.lines
