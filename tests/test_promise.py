"""A run is the training that was asked for, or it ends and says why."""

import data
import pytest
import torch
from params import one_of
from runs import CLOCKWORK, ray_train
from test_same_training import check_curves

MASKED_LM = (*data.MASKED_LM, "--fix-batch-size", "8")


def fault(rank, update, what):
    return {"rank": rank, "update": update, "where": "begin", "what": what}


def test_an_exception_that_comes_back_ends_the_run_also_with_progress_in_between(
    tmp_path, english, two_nodes
):
    run = ray_train(
        tmp_path,
        english,
        MASKED_LM,
        *("--max-update", "60"),
        address=two_nodes.address,
        faults=[fault(update // 10 % 2, update, "raise") for update in range(11, 61, 10)],
    )
    assert 1 == run.wait()
    assert 2 == len(run.events("stopped"))
    assert "raised ValueError: the model is broken at update 11" in run.output
    assert "training failed 2 times, after update 10 and 20" in run.output
    (warning,) = (line for line in run.lines if "| WARNING |" in line)
    assert "2 of the restarts were for exceptions of the training code" in warning


def test_an_exception_that_does_not_come_back_is_said_and_remembered(tmp_path, english, two_nodes):
    options = ("--max-update", "20")
    run = ray_train(
        tmp_path,
        english,
        MASKED_LM,
        *options,
        address=two_nodes.address,
        faults=[fault(0, 11, "raise")],
    ).finish()
    told = [line for line in run.lines if "ValueError: the model is broken at update 11" in line]
    assert any("stopped: FAILED: rank 0" in line for line in told), "when it happened"
    assert any("| WARNING |" in line and "1 of the restarts" in line for line in told), "at the end"


def test_recovery_does_not_obey_the_options_of_checkpoints(tmp_path, english, two_nodes):
    options = (
        *(*MASKED_LM, "--no-save-optimizer-state", "--load-checkpoint-on-all-dp-ranks"),
        *("--checkpoint-suffix", "_mine", "--reset-optimizer", "--reset-lr-scheduler"),
        *("--reset-dataloader", "--reset-meters", "--optimizer-overrides", "{'lr': [1.0]}"),
    )

    def train(name, *more, **fields):
        folder, address = tmp_path / name, two_nodes.address
        return ray_train(folder, english, options, *more, address=address, **fields)

    undisturbed = train("undisturbed", "--max-update", "30").finish()
    kills = [fault(0, 11, "SIGKILL"), fault(1, 21, "SIGKILL")]
    run = train("killed", "--max-update", "30", faults=kills).finish()
    assert undisturbed.curve() == run.curve()
    assert undisturbed.samples() == run.samples()
    checkpoint = torch.load(run.save_dir / "checkpoint_last_mine.pt", weights_only=False)
    assert "last_optimizer_state" not in checkpoint, "the user's own obey them"


def test_without_the_optimizers_state_training_does_not_go_on_as_if_it_had_it(
    tmp_path, english, nodes
):
    nodes.add()
    options = (*MASKED_LM, "--no-save-optimizer-state", "--ray-snapshot-updates", "0")

    def train(*more, **fields):
        return ray_train(tmp_path, english, options, *more, address=nodes.address, **fields)

    train("--max-update", "6").finish()
    again = train("--max-update", "12")
    assert 1 == again.wait()
    assert "checkpoint_last.pt has no optimizer state (--no-save-optimizer-state)" in again.output
    assert "Traceback" not in again.output
    # what was put by to become the checkpoint has it
    killed = train(
        *("--max-update", "12", "--reset-optimizer", "--reset-dataloader"),
        *("--save-interval-updates", "4"),
        faults=[fault(0, 10, "SIGKILL")],
    ).finish()
    assert 8 < killed.events("advanced")[-1]["update"]


def test_ranks_that_drift_apart_end_the_run_before_a_checkpoint_is_written(
    tmp_path, english, two_nodes
):
    drift = fault(1, 15, "drift") | {"where": "optimizer"}
    options = ("--max-update", "40", "--save-interval-updates", "10")
    run = ray_train(
        tmp_path, english, MASKED_LM, *options, address=two_nodes.address, faults=[drift]
    )
    assert 1 == run.wait()
    assert "after update 20, rank 1 of 2 had other parameters than the rest" in run.output
    assert "Traceback" not in run.output
    assert (run.save_dir / "checkpoint_1_10.pt").exists()
    assert not (run.save_dir / "checkpoint_1_20.pt").exists()
    again = tmp_path / "again"
    drift = fault(1, 1, "drift") | {"where": "optimizer"}
    run = ray_train(again, english, MASKED_LM, *options, address=two_nodes.address, faults=[drift])
    assert 1 == run.wait()
    assert "after update 1, rank 1 of 2 had other parameters" in run.output, "without a checkpoint"


def test_data_that_is_ordered_by_the_clock_is_refused(tmp_path, english, nodes):
    options = (
        *("--user-dir", CLOCKWORK, "--task", "clockwork_masked_lm"),
        *("--max-epoch", "1", "--save-interval-updates", "10"),
    )

    def train(name, *more):
        folder, address = tmp_path / name, nodes.address
        return ray_train(folder, english, MASKED_LM, *options, *more, address=address)

    nodes.add()
    assert 0 == train("alone", "--max-update", "10").wait()
    run = train("alone")
    assert 1 == run.wait()
    assert "cannot go on in epoch 1: its mini-batches, or their order, are not" in run.output
    run = train("alone", "--ray-restart-epoch", "--max-update", "15").finish()
    assert "epoch 1 begins again" in run.output
    nodes.add()
    run = train("two")
    assert 1 == run.wait()
    assert "after update 1, rank 1 of 2 had data in another order than the rest" in run.output


ORDERS = {
    # the data set draws for three virtual epochs at a time, when the first of the three begins
    "virtual-epochs": (
        *(*data.without(data.TRANSLATION, "--source-lang", "--target-lang"),),
        *("--task", "translation_multi_simple_epoch", "--langs", "en,fr", "--lang-pairs", "en-fr"),
        *("--sampling-method", "temperature", "--virtual-epoch-size", "500"),
        *("--virtual-data-size", "1300", "--max-tokens", "250", "--fix-batch-size", "1000"),
    ),
    # mini-batches are cut by the epoch for which the data was loaded, as always in fairseq main
    "seed-of-the-epoch": (
        *(*data.MASKED_LM, "--update-ordered-indices-seed", "--train-subset", "valid"),
        *("--valid-subset", "test", "--batch-size", "2", "--fix-batch-size", "4"),
    ),
}


@pytest.mark.parametrize("name", one_of(ORDERS, "virtual-epochs"))
def test_an_order_that_hangs_on_an_earlier_epoch_is_that_of_a_run_that_nothing_happened_to(
    name, tmp_path, request, nodes
):
    text = request.getfixturevalue("parallel" if name == "virtual-epochs" else "english")
    options = ("--max-epoch", "4", "--disable-validation")

    def train(folder, **fields):
        folder, address = tmp_path / folder, nodes.address
        return ray_train(folder, text, ORDERS[name], *options, address=address, **fields).finish()

    nodes.add()
    alone = train("alone")
    nodes.add()
    first = {}  # update of each epoch
    for update, (epoch,) in alone.curve("epoch").items():
        first.setdefault(epoch, update)
    assert [1, 2, 3, 4] == list(first)
    run = train("killed", faults=[fault(0, first[3] + 2, "SIGKILL"), fault(1, first[4], "SIGKILL")])
    assert alone.samples() == run.samples()
    check_curves(alone.curve(), run.curve())
