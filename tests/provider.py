"""A cloud for Ray's autoscaler: its nodes are processes on this machine.

Loaded by the autoscaler's own process. Ray's has no node die but by the autoscaler's will.
"""

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Provider(FakeMultiNodeProvider):
    """A node that has died is gone, as a spot instance that was taken back."""

    def non_terminated_nodes(self, tag_filters):
        with self.lock:
            for node_id, entry in list(self._nodes.items()):
                if "node" in entry and not entry["node"].remaining_processes_alive():
                    self.terminate_node(node_id)
        return super().non_terminated_nodes(tag_filters)
