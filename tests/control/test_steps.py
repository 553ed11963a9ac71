"""Each recovery says where its time went."""

from test_loop import Cluster, told

from fairseq_ray_plugin.control.state import Log
from fairseq_ray_plugin.protocol import Advanced, Running, Save
from fairseq_ray_plugin.report.journal import EventKind


def steps_told(cluster):
    """Those of the last generation that advanced."""
    events = [action.event for action in cluster.actions if isinstance(action, Log)]
    return next(e for e in reversed(events) if e.kind is EventKind.ADVANCED).details["steps"]


def test_a_recovery_tells_what_each_step_of_it_took():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    cluster.see(cluster.ended("worker-1", "was killed by SIGKILL"), after=5.0)
    (save,) = told(cluster.see(cluster.held("worker-0", 10), after=0.5), Save)
    (start,) = cluster.see(cluster.saved(save.worker, 10, "memory"), after=1.25)
    cluster.see(*(cluster.says(rank, Running(1)) for rank in start.ranks), after=0.25)
    first = Advanced(11, cluster.now, (("meet", 0.1), ("load", 2.00049)))
    cluster.see(cluster.says("worker-0", first), after=9.0)
    expected = {"hold": 0.5, "save": 1.25, "gather": 0.0, "fork": 0.25, "meet": 0.1, "load": 2.0}
    assert expected == steps_told(cluster)
    assert list(expected) == list(steps_told(cluster)), "in their order"


def test_each_recovery_tells_its_own_steps():
    cluster = Cluster()
    cluster.train({"a": 1, "b": 1})
    for update, seconds in ((10, 1.0), (20, 2.0)):
        cluster.see(cluster.ended("worker-1", "was killed by SIGKILL"), after=7.0)
        (save,) = told(cluster.see(cluster.held("worker-0", update), after=seconds), Save)
        (start,) = cluster.see(cluster.saved(save.worker, update, f"memory-{update}"))
        cluster.see(*(cluster.says(rank, Running(1)) for rank in start.ranks))
        cluster.see(*(cluster.advanced(rank, update + 1) for rank in start.ranks))
        assert seconds == steps_told(cluster)["hold"]
