"""Real faults on real training: it goes on, loses nothing, and leaves nothing behind."""

import contextlib
import glob
import signal
import time

import data
import psutil
import pytest
import recorded
import torch
from metadata import MetadataServer
from oom import too_little_memory
from runs import NEARBY, STATEFUL, check_epochs, kill, ray_train, same

from fairseq_ray_plugin.accounting.account import account
from fairseq_ray_plugin.accounting.spent import Spent

FIXED = (*data.MASKED_LM, "--fix-batch-size", "8")


def check_samples(run, num_updates):
    """Each update ate its batch, and until the epoch's end no sample came twice."""
    samples = run.samples()
    assert list(range(1, num_updates + 1)) == list(samples)
    eaten = [i for ids in samples.values() for i in ids]
    assert len(eaten) == len(set(eaten)), "a sample was eaten twice within the epoch"
    # one mini-batch of the whole text is short
    assert all(len(ids) in (8, 5) for ids in samples.values())


def was_met_before(run, generation):
    """Whether a generation's ranks had met when it began: no step of its start is that."""
    (advanced,) = [e for e in run.events("advanced") if e["generation"] == generation]
    return "load" in advanced["steps"] and not {"meet", "model"} & advanced["steps"].keys()


def has_worker(nodes, node):
    commands = []
    for process in nodes.processes(node):
        with contextlib.suppress(psutil.Error):
            commands += process.cmdline()
    return "fairseq_ray_plugin.worker.forkserver" in commands


def check_nothing_left(run):
    pids = {step["pid"] for step in run.steps()}
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    nodes = {rank["node"] for event in run.events("started") for rank in event["ranks"]}
    assert [] == [folder for node in nodes for folder in glob.glob(f"/dev/shm/fairseq_ray_*{node}")]


def test_whatever_happens_to_a_training_process_costs_the_update_in_flight(
    tmp_path, english, two_nodes
):
    faults = [
        {"rank": 1, "update": 11, "where": "begin", "what": "SIGKILL"},
        {"rank": 0, "update": 21, "where": "forward", "what": "SIGKILL"},
        {"rank": 0, "update": 30, "where": "validate", "what": "SIGKILL"},
        {"rank": 1, "update": 41, "where": "optimizer", "what": "SIGKILL"},
        {"rank": 1, "update": 51, "where": "forward", "what": "raise"},
        {"rank": 0, "update": 60, "where": "checkpoint", "what": "SIGKILL"},
        {"rank": 1, "update": 71, "where": "all_reduce", "what": "SIGSEGV"},
        {"rank": 0, "update": 81, "where": "begin", "what": "SIGABRT"},
    ]
    log_file = tmp_path / "log.txt"
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-update", "90", "--save-interval-updates", "30", "--log-file", log_file),
        address=two_nodes.address,
        faults=faults,
    ).finish()
    assert 0 == run.redone()
    check_samples(run, 90)
    stops = run.events("stopped")
    assert len(faults) == len(stops)
    for fault, stop in zip(faults, stops, strict=True):
        assert f"rank {fault['rank']}" in stop["cause"]
    assert {2} == {event["world_size"] for event in run.events("started")}
    assert {30, 60, 90} <= {event["update"] for event in run.events("checkpoint")}
    for text in ("'distributed_training': {", "criterion: "):
        assert 1 == run.output.count(text), "a restart says nothing that was said before"
    logged = recorded.json_lines(log_file.read_text())
    assert {1} == {len(lines) for lines in logged.values()}, "what was logged is there once"
    expected = {(update, "loss") for update in range(1, 91)}
    expected |= {(update, "valid_loss") for update in (30, 60, 90)} | {(90, "train_loss")}
    assert expected == set(logged)
    ended = {line["pid"] for line in run.lines_of("exit")}
    assert {rank["pid"] for rank in run.ranks()} <= ended, "processes end as processes do"
    told = account(run.events())
    assert sum(told.spent.values()) == pytest.approx(told.wall_s * told.slots)
    assert len(faults) == len(told.failures) and told.updates_redone == 0
    assert all(told.spent[kind] > 0 for kind in (Spent.VALIDATION, Spent.CHECKPOINT_RESTORE))
    check_nothing_left(run)


def test_a_hang_is_passed_within_twice_the_limit_and_its_stacks_are_kept(
    tmp_path, english, two_nodes
):
    faults = [
        {"rank": 1, "update": 21, "where": "forward", "what": "SIGSTOP"},
        {"rank": 0, "update": 31, "where": "forward", "what": "hang"},
        {"rank": 1, "update": 40, "where": "validate", "what": "hang"},
    ]
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-update", "60", "--save-interval-updates", "40", "--ray-hang-timeout", "5"),
        address=two_nodes.address,
        faults=faults,
    ).finish()
    assert 0 == run.redone()
    check_samples(run, 60)
    hangs = [stop for stop in run.events("stopped") if stop["cause"].startswith("HUNG")]
    assert ["training", "training", "validating"] == [
        next(what for what in ("training", "validating") if f"while {what}" in hang["cause"])
        for hang in hangs
    ]
    advanced = [event["time"] for event in run.events("advanced")]
    for number in range(len(faults)):
        fired = float((run.records / f"fired_{number}").read_text().split()[0])
        assert min(time - fired for time in advanced if time > fired) < 2 * 5
    stacks = run.events("stacks")
    assert 6 == len(stacks)
    assert any("fail_if_asked" in event["stacks"] for event in stacks)
    assert any("all_reduce" in event["stacks"] for event in stacks)
    check_nothing_left(run)


def test_two_processes_that_die_at_once_cost_no_more_than_one_and_all_cost_no_checkpoint(
    tmp_path, english, two_nodes
):
    two_nodes.add()
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-update", "60", "--disable-validation", "--ray-snapshot-updates", "10"),
        *("--fix-batch-size", "12"),
        address=two_nodes.address,
        faults=[
            *({"rank": r, "update": 21, "where": "begin", "what": "SIGKILL"} for r in (0, 2)),
            *({"rank": r, "update": 47, "where": "begin", "what": "SIGKILL"} for r in (0, 1, 2)),
        ],
    ).finish()
    assert {3} == {event["world_size"] for event in run.events("started")}
    assert 6 == run.redone(), "back to the snapshot after update 40"
    started, advanced = (run.events(kind)[1]["update"] for kind in ("started", "advanced"))
    assert advanced > started, (
        "a generation has advanced when it has completed an update of its own"
    )
    assert set(run.samples()) == set(range(1, 61))
    check_nothing_left(run)


def test_a_process_without_memory_and_a_worker_that_dies_are_replaced(tmp_path, english, two_nodes):
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-epoch", "1", "--disable-validation"),
        address=two_nodes.address,
        pause_s=0.2,
    )
    run.until_update(20)
    try:
        with too_little_memory(run.ranks()[1]["pid"]):
            again = run.until_advanced(world_size=2, after=1)
    except OSError as error:
        pytest.skip(f"memory cgroups cannot be made here: {error}")
    (stopped,) = run.events("stopped")
    assert "killed by SIGKILL by the kernel, for lack of memory" in stopped["cause"]
    above = psutil.Process(run.ranks()[1]["pid"]).parents()
    worker = next(p for p in above if p.cmdline() and p.cmdline()[0].startswith("ray::"))
    kill(worker.pid)
    alone = run.until_advanced(world_size=1, after=again)
    run.until_advanced(world_size=2, after=alone)
    run.finish()
    assert 0 == run.redone()
    check_epochs(run, 1)
    check_nothing_left(run)


def test_a_node_that_dies_is_left_and_a_new_one_joined(tmp_path, english, two_nodes):
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-epoch", "2", "--disable-validation"),
        address=two_nodes.address,
        pause_s=0.1,
    )
    run.until_update(20)
    two_nodes.kill(two_nodes.of(run.ranks()[0]["node"]))
    alone = run.until(lambda: [e for e in run.events("advanced") if e["generation"] == 2])
    assert 1 == alone[0]["world_size"]
    two_nodes.add()
    grown = run.until(lambda: [e for e in run.events("advanced") if e["generation"] == 3])
    assert 2 == grown[0]["world_size"]
    assert was_met_before(run, 3), "training went on while the ranks were made"
    below = two_nodes.kill_raylet(two_nodes.of(run.ranks()[0]["node"]))
    run.until_advanced(world_size=1, after=3)
    _, alive = psutil.wait_procs(below, timeout=10)
    assert [] == alive, "what runs on a node ends with Ray's daemon there"
    run.finish()
    assert 0 == run.redone()
    causes = [event["cause"].partition(":")[0] for event in run.events("stopped")]
    assert ["LOST", "RESIZED", "LOST"] == causes
    check_epochs(run, 2)
    check_nothing_left(run)


def test_a_node_that_is_to_go_is_left_in_time_and_nothing_is_lost(
    tmp_path, english, nodes, monkeypatch, request
):
    """A notice to a spot instance, a node that Ray drains, a pod that is told to end."""
    with MetadataServer() as metadata:
        nodes.add()
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        spot = nodes.add()
        monkeypatch.delenv("AWS_EC2_METADATA_SERVICE_ENDPOINT")
        run = ray_train(
            tmp_path,
            english,
            FIXED,
            *("--max-epoch", "2", "--disable-validation"),
            address=nodes.address,
            pause_s=0.2,
        )
        run.until_update(20)
        metadata.announce(120)
        alone = run.until_advanced(world_size=1, after=0)
        assert was_met_before(run, alone)
        assert spot.node_id not in [rank["node"] for rank in run.ranks()]
        drained = nodes.add()
        run.until_advanced(world_size=2, after=alone)
        nodes.drain(drained, 60)
        alone = run.until_advanced(world_size=1, after=alone + 1)
        # it has left the node, so that Ray can take it away
        assert has_worker(nodes, nodes.nodes[0])
        run.until(lambda: not has_worker(nodes, drained))
        pod = request.getfixturevalue("pod")
        run.until_advanced(world_size=2, after=alone)
        pod.terminate()
        run.until_advanced(world_size=1, after=alone + 1)
        # left, it need not wait for its deadline
        assert pod.wait(20) is not None
        run.finish()
    assert 0 == run.redone()
    check_epochs(run, 2)
    causes = [event["cause"] for event in run.events("stopped")]
    assert ["PREEMPTED", "RESIZED", "PREEMPTED", "RESIZED", "PREEMPTED"] == causes
    assert ["AWS will terminate", "the cluster drains", "the cluster drains"] == [
        next(text for text in ("AWS will terminate", "the cluster drains") if text in e["cause"])
        for e in run.events("notice")
    ]
    check_nothing_left(run)


def test_a_node_that_stands_still_is_left_and_taken_back_when_it_goes_on(
    tmp_path, english, two_nodes
):
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-epoch", "2", "--disable-validation"),
        address=two_nodes.address,
        pause_s=0.1,
    )
    run.until_update(20)
    still = two_nodes.of(run.ranks()[0]["node"])
    begin = time.time()
    two_nodes.stop(still)
    alone = run.until_advanced(world_size=1, after=0)
    assert run.events("advanced")[-1]["time"] - begin < 10
    two_nodes.resume(still)
    run.until_advanced(world_size=2, after=alone)
    run.finish()
    assert 0 == run.redone()
    check_epochs(run, 2)
    check_nothing_left(run)


def test_nodes_that_come_and_go_every_few_seconds_cost_no_sample(tmp_path, english, nodes):
    nodes.add()
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-epoch", "2", "--disable-validation"),
        address=nodes.address,
        pause_s=0.3,
    )
    run.until_update(5)
    generation = 1
    for stays_until in ("added", "placed", "in use"):
        node = nodes.add()
        if stays_until == "placed":
            run.until(lambda node=node: has_worker(nodes, node))
        if stays_until == "in use":
            generation = run.until_advanced(world_size=2, after=generation)
        nodes.kill(node)
    run.finish()
    assert 0 == run.redone()
    assert {1, 2} == {step["world"] for step in run.steps()}
    check_epochs(run, 2)
    check_nothing_left(run)


def test_when_all_training_processes_die_the_newest_checkpoint_serves(tmp_path, english, two_nodes):
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-update", "60", "--save-interval-updates", "20", "--disable-validation"),
        *("--ray-snapshot-updates", "0"),  # there would be one after 10 s
        address=two_nodes.address,
        faults=[
            {"rank": rank, "update": 36, "where": "begin", "what": "SIGKILL"} for rank in (0, 1)
        ],
    ).finish()
    assert 15 == run.redone()
    assert run.samples()[20] and set(run.samples()) == set(range(1, 61))


def test_after_a_failure_the_validation_data_is_not_read_before_it_is_needed(
    tmp_path, english, two_nodes
):
    """fairseq main reads all of it before the first update of every process."""
    kills = [{"rank": 1, "update": 3, "where": "begin", "what": "SIGKILL"}]
    run = ray_train(
        tmp_path, english, FIXED, "--max-update", "6", address=two_nodes.address, faults=kills
    ).finish()
    after = {rank["pid"] for rank in run.ranks()}
    reads = [read["update"] for read in run.lines_of("validation_data") if read["pid"] in after]
    assert 2 <= len(reads) and {6} == set(reads)


def test_a_driver_told_to_end_saves_a_checkpoint_and_the_same_command_goes_on(
    tmp_path, english, two_nodes
):
    options = ("--max-update", "80", "--disable-validation")
    run = ray_train(tmp_path, english, FIXED, *options, address=two_nodes.address, pause_s=0.1)
    run.until_update(20)
    run.process.send_signal(signal.SIGINT)  # SIGTERM: tests/test_network.py and others
    assert 130 == run.wait()
    (end,) = run.events("interrupted")
    assert end["update"] >= 20
    check_nothing_left(run)
    assert 0 == ray_train(tmp_path, english, FIXED, *options, address=two_nodes.address).wait()
    assert 0 == run.redone()
    check_samples(run, 80)


@pytest.mark.parametrize(
    ("what", "message", "times"),
    [
        ("raise", "ValueError: the model is broken at update 11", "3 times"),
        # every rank sees it: no node is to blame
        ("nan", "FloatingPointError: gradients are Nan/Inf", "2 times"),
    ],
)
def test_the_users_own_error_ends_the_run_with_its_traceback(
    what, message, times, tmp_path, english, two_nodes
):
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-update", "60", "--disable-validation"),
        address=two_nodes.address,
        faults=[{"rank": 0, "update": 11, "where": "forward", "what": what, "always": True}],
    )
    assert 1 == run.wait()
    assert message in run.output
    (failed,) = run.events("failed")
    assert f"failed {times}, after update 10" in failed["cause"]
    check_nothing_left(run)


def test_a_command_that_is_killed_with_its_local_ray_leaves_nothing_and_goes_on_once_more(
    tmp_path, english
):
    options = ("--max-update", "80", "--save-interval-updates", "20", "--disable-validation")

    def train():
        return ray_train(tmp_path, english, FIXED, *options, pause_s=0.1)

    run = train()
    run.until_update(30)
    ranks = [psutil.Process(rank["pid"]) for rank in run.ranks()]
    run.process.kill()
    run = train()  # at once, while they may still be ending
    gone, alive = psutil.wait_procs(ranks, timeout=10)
    assert [] == alive
    run.finish()
    assert "waiting up to" not in run.output, "whose save dir it was, and that it is dead, is known"
    assert run.redone() < 20 + 5
    assert set(range(1, 81)) == set(run.samples())
    check_nothing_left(run)


def test_too_few_workers_are_waited_for(tmp_path, english, nodes):
    nodes.add()
    run = ray_train(
        tmp_path,
        english,
        FIXED,
        *("--max-update", "10", "--disable-validation", "--ray-min-workers", "2"),
        address=nodes.address,
    )
    waiting = run.until(lambda: [e for e in run.events("waiting") if "1 ready" in e["cause"]])
    assert "2 workers" in waiting[0]["cause"]
    nodes.add()
    run.finish()
    assert [2] == [event["world_size"] for event in run.events("started")]


def test_after_failures_the_whole_state_is_that_of_an_undisturbed_run_bit_for_bit(
    tmp_path, english, two_nodes
):
    """Model, optimizer, scheduler, scaler, average, criterion, task and meters."""

    def train(name, faults=()):
        run = ray_train(
            tmp_path / name,
            english,
            data.MASKED_LM,
            *("--user-dir", STATEFUL, "--task", "counting_masked_lm"),
            *("--criterion", "scaled_masked_lm", "--max-update", "40", "--disable-validation"),
            *("--store-ema", "--ema-fp32", "--ema-update-freq", "3", "--ema-decay", "0.9"),
            # the scale doubles every 8 updates: its counters must not begin again
            *("--fp16", "--fp16-init-scale", "4"),
            *("--fp16-scale-window", "8", "--update-freq", "2"),
            address=two_nodes.address,
            faults=[*faults],
        ).finish()
        return torch.load(run.save_dir / "checkpoint_last.pt", weights_only=False)

    expected = train("undisturbed")
    actual = train(
        "disturbed",
        [
            {"rank": 1, "update": 6, "where": "begin", "what": "SIGKILL"},
            {"rank": 0, "update": 13, "where": "optimizer", "what": "SIGKILL"},
            {"rank": 1, "update": 29, "where": "all_reduce", "what": "SIGKILL"},
        ],
    )
    assert {"steps": 40} == expected["task_state"]
    assert 0.9 != expected["criterion"]["factor"].item() != 1
    assert 4 < expected["last_optimizer_state"]["loss_scale"]
    for part in ("model", "criterion", "last_optimizer_state", "optimizer_history", "task_state"):
        assert same(expected[part], actual[part]), part
    for part in ("ema", "ema_fp32_params"):
        assert same(expected["extra_state"][part], actual["extra_state"][part]), part
    meters, meters_there = (
        {name: meter for _, name, _, meter in state["extra_state"]["metrics"]["train"]}
        for state in (expected, actual)
    )
    timeless = set(meters) - {"train_wall", "wall", "wps", "ups", "gb_free"}
    assert {"loss", "gnorm", "lr", "bsz"} < timeless
    assert {k: meters[k] for k in timeless} == {k: meters_there[k] for k in timeless}


def test_ranks_of_each_node_go_on_from_its_own_memory_and_all_from_the_same_bits(
    tmp_path, english, nodes
):
    """Two nodes of two ranks, of which one is killed; each rank had averages of its own."""
    for _ in range(2):
        nodes.add(num_cpus=2)
    run = ray_train(
        tmp_path,
        english,
        data.MASKED_LM,
        *("--encoder-ffn-embed-dim", "2048", "--max-update", "20", "--disable-validation"),
        *("--user-dir", NEARBY, "--ray-min-workers", "4"),
        address=nodes.address,
        faults=[{"rank": 1, "update": 11, "where": "begin", "what": "SIGKILL"}],
    ).finish()
    last = [line for line in run.lines_of("averages") if line["update"] == 10]
    (of_rank_0,) = [line["averages"] for line in last if line["rank"] == 0]
    assert 4 == len({str(line["averages"]) for line in last}), "they differ by rank"
    loaded = [line for line in run.lines_of("loaded") if line["update"] == 10]
    assert [0, 1, 2, 3] == sorted(line["rank"] for line in loaded)
    assert 1 == len({line["digest"] for line in loaded}), "model and optimizer, bit for bit"
    assert [of_rank_0] * 4 == [line["averages"] for line in loaded]
    shares = {line["rank"]: line["share"] for line in loaded}
    assert 0 == shares[0] == shares[1], "their node's file is rank 0's"
    assert 0 < shares[2] == shares[3] < 0.1, "what differs comes from rank 0, with what is small"
