"""The control loop lives on the cluster: who follows it may go, and so may the loop itself."""

import glob
import signal
import subprocess
import time

import data
import psutil
from runs import BIN, Run, check_epochs, kill, ray_train, residences

from fairseq_ray_plugin import head

FIXED = (*data.MASKED_LM, "--fix-batch-size", "12", "--disable-validation")


def names(address):
    """Of all our actors on the cluster."""
    code = (
        f"import ray; ray.init('{address}', namespace='{head.NAMESPACE}', log_to_driver=False,"
        "logging_level='ERROR'); print(ray.util.list_named_actors())"
    )
    command = [BIN / "python", "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, env=data.environment())
    assert 0 == output.returncode, output.stderr
    return output.stdout.strip().splitlines()[-1]


def check_nothing_left(run, address):
    pids = {step["pid"] for step in run.steps()}
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    nodes = {rank["node"] for event in run.events("started") for rank in event["ranks"]}
    assert [] == [folder for node in nodes for folder in glob.glob(f"/dev/shm/fairseq_ray_*{node}")]
    end = time.monotonic() + 10
    while names(address) != "[]" or residences(address):  # it says for a second how the run ended
        assert time.monotonic() < end, names(address)


def attach(folder, save_dir, address):
    command = (BIN / "fairseq-ray-train", "--ray-attach", save_dir, "--ray-address", address)
    return Run(folder, [*command])


def test_who_started_a_run_may_be_killed_and_others_follow_it_to_its_end(
    tmp_path, english, two_nodes
):
    address = two_nodes.address

    def train(*more):
        return ray_train(
            *(tmp_path, english, FIXED, "--max-epoch", "2", *more), address=address, pause_s=0.1
        )

    run = train()
    run.until_update(10)
    run.process.kill()
    run.process.wait()
    again = train()
    again.until(lambda: "following it" in again.output)
    again.until(lambda: again.curve("loss"))
    other = train("--lr", "0.123")
    assert 2 == other.wait()
    assert "--ray-attach" in other.lines[-1] and "Traceback" not in other.output
    last = again.steps()[-1]["update"]
    again.process.kill()
    two_nodes.add()  # also new nodes are of use
    late = attach(tmp_path / "late", run.save_dir, address)
    run.process = late.process
    run.until_advanced(3, after=1)
    late.until(lambda: any(update > last + 5 for update in late.curve("loss")))
    kill(late.process.pid, "SIGINT")
    assert 128 + signal.SIGINT == late.wait()
    assert "checkpoint_last.pt is the state after update" in late.lines[-1]
    assert [1, 2] == [event["generation"] for event in run.events("started")]
    check_nothing_left(run, address)
    final = train().finish()
    assert 0 == run.redone()
    check_epochs(run, num_epochs=2)
    check_nothing_left(final, address)


def test_a_loop_that_is_killed_is_followed_by_another_and_nothing_is_redone(
    tmp_path, english, two_nodes
):
    options = ("--max-update", "120")
    run = ray_train(tmp_path, english, FIXED, *options, address=two_nodes.address, pause_s=0.1)
    (raylet,) = two_nodes.cluster.head_node.all_processes["raylet"]
    for update in (10, 30, 50):
        run.until_update(update)
        (loop,) = residences(two_nodes.address)
        assert raylet.process.pid == loop.ppid(), "it stays where the command is, and the save dir"
        loop.kill()
        run.until_event("taken over", count=update // 20 + 1)
    run.finish()
    assert 0 == run.redone() and list(range(1, 121)) == list(run.samples())
    taken_over = run.events("taken over")
    assert 3 == len(taken_over)
    stopped = run.events("stopped")
    assert ["TAKEN_OVER"] * 3 == [event["cause"] for event in stopped]
    check_nothing_left(run, two_nodes.address)


def test_there_is_nothing_to_follow_where_nothing_runs(tmp_path, two_nodes):
    result = subprocess.run(
        [BIN / "fairseq-ray-train", "--ray-attach", tmp_path, "--ray-address", two_nodes.address],
        capture_output=True,
        text=True,
        env=data.environment(),
    )
    assert 2 == result.returncode
    assert 1 == len(result.stderr.splitlines()) and f"--ray-attach {tmp_path}" in result.stderr
