"""A network that is cut and mended again and again costs two stalls each time, and no more."""

import time

import data
from runs import ray_train

NUM_CUTS = 14


def test_a_node_that_comes_back_is_back_for_good(tmp_path, english, hosts, two_hosts):
    run = ray_train(
        *(tmp_path, english, data.MASKED_LM),
        *("--fix-batch-size", "8", "--max-epoch", "40", "--disable-validation"),
        address=two_hosts.address,
        pause_s=0.2,
    )
    run.until_update(5)
    for number in range(NUM_CUTS):
        node = two_hosts.of(run.ranks()[1]["node"])
        (host,) = (host for host in hosts if host.address == node.node_ip_address)
        before = run.events("started")[-1]["generation"]
        host.cut()
        alone = run.until_advanced(world_size=1, after=before)
        time.sleep(number % 3)  # what the network holds back comes at once, or late
        host.mend()
        run.until_advanced(world_size=2, after=alone)
        causes = [stop["cause"].partition(":")[0] for stop in run.events("stopped")]
        assert ["LOST", "RESIZED"] == causes[2 * number :], run.tail()
        time.sleep(1)
    assert 0 == run.redone()
