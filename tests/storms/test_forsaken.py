"""A run whose loop is gone for good is saved, and ends: it holds no GPU for ever."""

import glob
import time

import data
import psutil
import ray
import torch
from runs import ray_train

from fairseq_ray_plugin import head, placing, residence

FIXED = (*data.MASKED_LM, "--fix-batch-size", "8", "--disable-validation")


def test_workers_that_nobody_asks_anything_end_with_all_they_have(tmp_path, english, two_nodes):
    run = ray_train(
        tmp_path, english, FIXED, "--max-epoch", "9", address=two_nodes.address, pause_s=0.5
    )
    run.until_update(5)
    pids = [rank["pid"] for rank in run.ranks()]
    run.process.kill()
    ray.init(two_nodes.address, namespace=head.NAMESPACE, log_to_driver=False)
    try:
        ray.kill(ray.get_actor(residence.name_for(str(run.save_dir))), no_restart=True)
        begin = time.monotonic()
        while any(psutil.pid_exists(pid) for pid in pids) or ray.util.list_named_actors():
            assert time.monotonic() < begin + placing.UNASKED_LIMIT_S + 30
            time.sleep(1)
    finally:
        ray.shutdown()
    assert time.monotonic() > begin + placing.UNASKED_LIMIT_S - 10
    state = torch.load(run.save_dir / "checkpoint_last.pt", weights_only=False)
    last = max(step["update"] for step in run.steps())
    assert last == state["optimizer_history"][-1]["num_updates"]
    nodes = {rank["node"] for rank in run.ranks()}
    assert [] == [folder for node in nodes for folder in glob.glob(f"/dev/shm/fairseq_ray_*{node}")]
