"""Data made once, and Ray clusters of several nodes on this machine."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time

import data
import psutil
import pytest
import runs
from network import Network

# before ray is imported anywhere: nothing is sent out, nothing is shared with other clusters
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)

from fairseq_ray_plugin import compat

compat.apply()


@pytest.fixture(autouse=True)
def no_run_outlives_a_test():
    """One that fails leaves its run, which would disturb the next."""
    yield
    while runs.STARTED:
        process = runs.STARTED.pop().process
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def english(tmp_path_factory):
    return data.english_text(tmp_path_factory.mktemp("english"))


@pytest.fixture(scope="session")
def parallel(tmp_path_factory):
    return data.parallel_text(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="session", autouse=True)
def ray_folder():
    """Ray's files go to a folder of our own; short, for sockets have paths of 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="frp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        yield folder


@pytest.fixture(scope="session")
def head(ray_folder):
    """A cluster whose only node has no room for workers."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    yield cluster
    cluster.shutdown()


class Nodes:
    """The nodes of one test."""

    def __init__(self, cluster):
        self.cluster, self.address = cluster, cluster.address
        self.nodes = []
        self.stopped = {}
        self.touched = False

    def add(self, num_cpus=1, host=None, num_gpus=0):
        if host is None:
            node = self.cluster.add_node(num_cpus=num_cpus, num_gpus=num_gpus)
        else:
            with host.inside():
                node = self.cluster.add_node(num_cpus=num_cpus, node_ip_address=host.address)
        self.nodes.append(node)
        return node

    def are_untouched(self):
        """Nothing was done to them, and nothing that a run has started is there."""
        if self.touched:
            return False
        try:
            names = [p.cmdline()[:1] for node in self.nodes for p in self.processes(node)]
        except psutil.NoSuchProcess:
            return False
        return not any("Residence" in name or "Actor" in name for (name,) in filter(None, names))

    def kill(self, node):
        """The node and all that runs on it die at once, as when a machine is taken away."""
        self.touched = True
        victims = self.processes(node)
        self.stopped.pop(node, None)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        for victim in victims:
            if victim.is_running():
                victim.kill()

    def kill_raylet(self, node):
        """Ray's daemon on the node dies alone; returns what ran below it."""
        self.touched = True
        _, *below = self.processes(node)
        (raylet,) = (info.process for info in node.all_processes["raylet"])
        raylet.kill()
        raylet.wait()  # Ray's workers take a zombie to be alive
        return below

    def stop(self, node):
        """The node and all that runs on it stand still, as when a machine hangs."""
        self.touched = True
        stopped = self.stopped[node] = []
        # the raylet first; then what it, or another before it stood still, has started meanwhile
        while running := [p for p in self.processes(node) if p not in stopped]:
            for process in running:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
                stopped.append(process)

    def resume(self, node):
        """What stood still goes on, as if nothing had happened."""
        for process in reversed(self.stopped.pop(node)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def drain(self, node, deadline_s):
        """Ray is told that the node will be taken away, in so many seconds."""
        self.touched = True
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        accepted, why_not = GcsClient(address=self.address).drain_node(
            node.node_id,
            autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
            "a spot instance is taken back",
            int((time.time() + deadline_s) * 1000),
        )
        assert accepted, why_not

    def processes(self, node):
        """The raylet, and all that runs below it."""
        (raylet,) = (psutil.Process(info.process.pid) for info in node.all_processes["raylet"])
        return [raylet, *raylet.children(recursive=True)]

    def of(self, node_id):
        return next(node for node in self.nodes if node.node_id == node_id)


@pytest.fixture
def pod(head):
    """A node as it is started in a pod: one process in the foreground, with all else below it."""
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    start = f"ulimit -n 65536; {ray} start --address {head.address} --num-cpus 1 --block"
    # as KubeRay has it: bash becomes its last command, or a pod's end would reach no one
    with subprocess.Popen(["bash", "-c", "--", start], stdout=subprocess.DEVNULL) as pod:
        try:
            yield pod
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pod.pid)
                for victim in [process, *process.children(recursive=True)]:
                    victim.kill()


@pytest.fixture
def nodes(head, rested):
    nodes = Nodes(head)
    nodes.nodes += rested
    rested.clear()
    yield nodes
    for node in list(nodes.stopped):
        nodes.resume(node)
    for node in [node for node in nodes.nodes if node not in rested]:  # these say goodbye
        head.remove_node(node)


@pytest.fixture
def two_nodes(nodes, rested, request):
    while len(nodes.nodes) < 2:
        nodes.add()
    pair = list(nodes.nodes)
    yield nodes
    if request.session.next_has_two_nodes and pair == nodes.nodes and nodes.are_untouched():
        rested += pair


@pytest.fixture(scope="session")
def rested():
    """Two nodes that a test has left as they were: to start others takes 4 s of a core."""
    return []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    following = nextitem.fixturenames if nextitem is not None else ()
    item.session.next_has_two_nodes = "two_nodes" in following


@pytest.fixture
def hosts(head):
    """Two hosts with a network between them and the head, that can be cut."""
    with contextlib.ExitStack() as stack:
        try:
            network = stack.enter_context(Network(head.head_node.node_ip_address))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield network.hosts


@pytest.fixture
def two_hosts(hosts, nodes):
    """A node on each of two hosts."""
    for host in hosts:
        nodes.add(host=host)
    yield nodes
    for host in hosts:
        host.mend()
