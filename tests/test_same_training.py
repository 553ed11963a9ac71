"""Whatever the cluster did, it is the same training: samples, batches, loss curve."""

import collections

import data
import psutil
import pytest
import torch
from params import one_of
from runs import STREAMING, kill, ray_train, torchrun

MASKED_LM = (*data.MASKED_LM, "--tokens-per-sample", "128", "--batch-size", "8")
FIXED = (*MASKED_LM, "--fix-batch-size", "32", "--num-workers", "1")


@pytest.mark.parametrize(
    ("model", "text", "options"),
    [
        pytest.param(
            *(MASKED_LM, "english", ("--max-update", "60", "--num-workers", "1")),
            marks=pytest.mark.storm,
        ),
        # past the epoch's end, where one rank has a mini-batch less
        (data.TRANSLATION, "parallel", ("--max-epoch", "2", "--update-freq", "3,2")),
    ],
    ids=["masked_lm", "translation"],
)
def test_undisturbed_training_logs_what_stock_fairseq_logs_digit_for_digit(
    model, text, options, tmp_path, request, two_nodes
):
    text = request.getfixturevalue(text)
    stock = torchrun(tmp_path / "stock", text, model, *options).finish()
    ours = ray_train(tmp_path / "ours", text, model, *options, address=two_nodes.address).finish()
    assert len(ours.curve()) >= 30
    assert stock.curve() == ours.curve()
    assert valid_losses(stock) == valid_losses(ours)
    assert stock.samples() == ours.samples()
    assert ours.losses()[-1] < ours.losses()[0] - 1


def valid_losses(run):
    lines = [line for line in run.lines if "| valid | {" in line]
    return [line.split('"valid_loss": "')[1].split('"')[0] for line in lines]


def test_a_fixed_batch_trains_alike_on_1_2_and_3_workers_and_through_resizes_and_kills(
    tmp_path, english, nodes
):
    options = ("--max-epoch", "2")
    nodes.add()

    def train(name, **fields):
        return ray_train(tmp_path / name, english, FIXED, *options, address=nodes.address, **fields)

    alone = train("one").finish()
    disturbed = train("disturbed", pause_s=0.5)
    disturbed.until_update(3)
    nodes.add()
    nodes.add()
    three = disturbed.until(lambda: [r for r in disturbed.steps() if r["world"] == 3])
    disturbed.until_update(three[0]["update"] + 3)
    kill(disturbed.ranks()[1]["pid"])
    disturbed.until_event("advanced", len(disturbed.events("advanced")) + 1)
    for _ in range(2):
        before = disturbed.events("advanced")[-1]
        disturbed.until_update(before["update"] + 2)
        last = nodes.of(disturbed.ranks()[-1]["node"])
        nodes.kill(last)
        disturbed.until(
            lambda before=before: (
                disturbed.events("advanced")[-1]["world_size"] < before["world_size"]
            )
        )
    disturbed.finish()
    assert 0 == disturbed.redone()
    sizes = [event["world_size"] for event in disturbed.events("started")]
    assert {1, 2, 3} == set(sizes) and 1 == sizes[0] == sizes[-1]
    nodes.add()
    two = train("two").finish()
    assert {2} == {step["world"] for step in two.steps()}
    for run in (two, disturbed):
        assert alone.samples() == run.samples()
        check_curves(alone.curve(), run.curve())
        losses = [[float(loss) for loss in valid_losses(one)] for one in (alone, run)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1.01e-3)


def check_curves(expected, actual):
    """Loss, gradient norm, learning rate, tokens and sentences of every update.

    Loss: 1e-4, and the last digit logged. The norm is more sensitive to the order of sums.
    """
    assert expected.keys() == actual.keys()
    for update, values in expected.items():
        loss, norm, *exact = values
        loss_there, norm_there, *exact_there = actual[update]
        assert float(loss) == pytest.approx(float(loss_there), rel=1e-4, abs=1.01e-3), update
        assert float(norm) == pytest.approx(float(norm_there), rel=1e-2), update
        assert exact == exact_there, update


def test_decisions_over_the_whole_run_survive_restarts(tmp_path, english, two_nodes):
    """Early stopping, learning rates by validation loss, the best checkpoint, those to keep."""
    options = (
        *("--train-subset", "valid", "--valid-subset", "test"),  # few enough to be learned by heart
        *("--lr", "1e-2", "--lr-scheduler", "reduce_lr_on_plateau", "--lr-shrink", "0.5"),
        *("--lr-patience", "1", "--patience", "5", "--max-epoch", "60"),
        *("--save-interval-updates", "6", "--keep-interval-updates", "2"),
        *("--keep-best-checkpoints", "1", "--best-checkpoint-metric", "loss"),
    )
    kills = [
        {"rank": rank, "update": update, "where": where, "what": "SIGKILL"}
        for rank, update, where in (
            *((1, 3, "begin"), (0, 6, "validate"), (0, 12, "checkpoint")),
            *((1, 17, "optimizer"), (0, 24, "validate")),
        )
    ]
    stock = torchrun(tmp_path / "stock", english, MASKED_LM, *options).finish()
    ours = ray_train(
        tmp_path / "ours", english, MASKED_LM, *options, address=two_nodes.address, faults=kills
    ).finish()
    last = max(stock.curve())
    assert last < 240, "the run is to stop early"
    assert stock.curve("loss", "gnorm", "lr") == ours.curve("loss", "gnorm", "lr")
    assert len({rate for (rate,) in ours.curve("lr").values()}) > 2, "the rate is to be lowered"
    assert set(valid_losses(stock)) == set(valid_losses(ours))
    assert checkpoints(stock) == checkpoints(ours)
    best = [update_of(run.save_dir / "checkpoint_best.pt") for run in (stock, ours)]
    assert best[0] == best[1] < last


def checkpoints(run):
    return sorted(path.name for path in run.save_dir.glob("*.pt"))


def update_of(path):
    return torch.load(path, weights_only=False)["optimizer_history"][-1]["num_updates"]


SHAPES = {
    "lists-by-epoch": (
        *(*MASKED_LM, "--update-freq", "2,1", "--num-workers", "2", "--skip-remainder-batch"),
        *("--fixed-validation-seed", "3", "--required-batch-size-multiple", "4"),
    ),
    "fixed-lists-by-epoch": (
        *(*data.TRANSLATION, "--fix-batch-size", "2000,1500", "--num-workers", "1"),
        *("--required-batch-size-multiple", "2", "--max-update", "75"),
    ),
}


@pytest.mark.parametrize("name", one_of(SHAPES, "fixed-lists-by-epoch"))
def test_whatever_shapes_the_batches_a_resize_repeats_and_skips_nothing(
    name, tmp_path, request, two_nodes
):
    """A worker is lost in mid-epoch and one at the epoch's end; two are there again in between."""
    text = request.getfixturevalue("parallel" if name.startswith("fixed") else "english")
    run = ray_train(
        tmp_path, text, SHAPES[name], "--max-epoch", "3", address=two_nodes.address, pause_s=0.3
    )
    run.until_update(10)
    kill(worker_of(run.ranks()[1]["pid"]))
    alone = run.until_advanced(world_size=1, after=0)
    two = run.until_advanced(world_size=2, after=alone)
    run.until(lambda: [e for e in run.events("checkpoint")])
    kill(worker_of(run.ranks()[0]["pid"]))
    run.until_advanced(world_size=1, after=two)
    run.finish()
    assert 0 == run.redone()
    samples = run.samples()
    assert list(range(1, len(samples) + 1)) == list(samples)
    if "--max-update" in SHAPES[name]:
        assert 75 == len(samples)
    eaten = collections.Counter(i for ids in samples.values() for i in ids)
    # a remainder that is skipped depends on the number of workers, and is no more than an update
    assert max(eaten.values()) <= 3
    rare = sum(3 - count for count in eaten.values())
    assert rare <= 3 * 2 * 2 * 8 if name == "lists-by-epoch" else len(eaten) > 3000


def test_an_order_by_world_size_begins_the_epoch_again_where_that_is_allowed(
    tmp_path, english, two_nodes
):
    options = ("--grouped-shuffling", "--max-epoch", "1")
    refused = ray_train(tmp_path / "no", english, MASKED_LM, *options, address=two_nodes.address)
    assert 2 == refused.wait()
    assert "--grouped-shuffling orders the data by the number of workers" in refused.output
    run = ray_train(
        tmp_path / "yes",
        english,
        MASKED_LM,
        *(*options, "--ray-restart-epoch"),
        address=two_nodes.address,
        pause_s=0.1,
    )
    run.until_update(15)
    kill(worker_of(run.ranks()[1]["pid"]))
    run.finish()
    assert "epoch 1 begins again: its order at 2 workers is not the one at 1" in run.output
    first = min(step["update"] for step in run.steps() if step["world"] == 1)
    last = [step["update"] for step in run.steps() if step["world"] == 1]
    again = [i for u in range(first, max(last) + 1) for i in run.samples()[u]]
    assert {1, 2} >= {step["world"] for step in run.steps()}
    assert len(again) == len(set(again))


def worker_of(pid):
    """The Ray worker above a training process."""
    above = psutil.Process(pid).parents()
    return next(p.pid for p in above if p.cmdline() and p.cmdline()[0].startswith("ray::"))


def test_without_a_fixed_batch_a_resize_repeats_and_skips_no_sample(tmp_path, english, two_nodes):
    run = ray_train(
        tmp_path, english, MASKED_LM, "--max-epoch", "1", address=two_nodes.address, pause_s=0.3
    )
    run.until_update(15)
    two_nodes.kill(two_nodes.of(run.ranks()[1]["node"]))
    run.finish()
    assert {1, 2} == {step["world"] for step in run.steps()}
    eaten = sorted(i for ids in run.samples().values() for i in ids)
    assert list(range(len(eaten))) == eaten


def test_a_checkpoint_of_stock_fairseq_goes_on_at_another_world_size(tmp_path, english, nodes):
    nodes.add()
    folder = tmp_path / "run"
    torchrun(folder, english, MASKED_LM, "--max-update", "20", num_ranks=3).finish()
    run = ray_train(folder, english, MASKED_LM, "--max-epoch", "1", address=nodes.address).finish()
    assert {3, 1} == {step["world"] for step in run.steps()}
    eaten = sorted(i for ids in run.samples().values() for i in ids)
    assert list(range(len(eaten))) == eaten


def test_stock_fairseq_goes_on_from_our_checkpoint_as_if_it_had_written_it(
    tmp_path, english, two_nodes
):
    stock = torchrun(tmp_path / "stock", english, MASKED_LM, "--max-update", "40").finish()
    folder = tmp_path / "run"
    ray_train(folder, english, MASKED_LM, "--max-update", "20", address=two_nodes.address).finish()
    run = torchrun(folder, english, MASKED_LM, "--max-update", "40").finish()
    assert stock.samples() == run.samples()
    assert stock.curve("loss")[40] == run.curve("loss")[40]


@pytest.mark.parametrize(
    ("limit", "num_updates"),
    [
        (("--max-update", "5"), 5),
        pytest.param(("--stop-time-hours", "0.000001"), 1, marks=pytest.mark.storm),
    ],
    ids=["updates", "time"],
)
def test_a_finished_run_started_again_trains_no_update_more(
    limit, num_updates, tmp_path, english, nodes
):
    nodes.add()
    for _ in range(2):
        run = ray_train(tmp_path, english, MASKED_LM, *limit, address=nodes.address).finish()
    assert list(range(1, num_updates + 1)) == list(run.samples())
    assert 0 == run.redone()


def test_an_iterator_without_positions_is_refused_or_begins_its_epoch_again(
    tmp_path, english, two_nodes
):
    """A task of the user's own that streams its data."""
    options = ("--user-dir", STREAMING, "--task", "streaming_masked_lm", "--max-epoch", "1")

    def train(name, *more, **fields):
        return ray_train(
            tmp_path / name,
            english,
            MASKED_LM,
            *options,
            *more,
            address=two_nodes.address,
            **fields,
        )

    refused = train("no")
    assert 1 == refused.wait()
    assert "iterator (StreamingEpochBatchIterator) has no position" in refused.output
    run = train("yes", "--ray-restart-epoch", pause_s=0.1)
    run.until_update(15)
    kill(worker_of(run.ranks()[1]["pid"]))
    run.finish()
    assert "epoch 1 begins again: its iterator keeps no position" in run.output


def test_fine_tuning_begins_at_the_first_sample_also_after_a_failure(tmp_path, english, two_nodes):
    def train(name, *options, **fields):
        return ray_train(
            tmp_path / name, english, MASKED_LM, *options, address=two_nodes.address, **fields
        ).finish()

    before = train("before", "--max-update", "10")
    run = train(
        "after",
        *("--finetune-from-model", before.save_dir / "checkpoint_last.pt", "--max-epoch", "1"),
        faults=[{"rank": 1, "update": 1, "where": "begin", "what": "SIGKILL"}],
    )
    eaten = sorted(i for ids in run.samples().values() for i in ids)
    assert list(range(len(eaten))) == eaten
    assert run.losses()[0] < before.losses()[0] - 0.1
