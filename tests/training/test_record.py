"""What training logs is there once, and all of it, whatever died in between."""

import logging
import types

import pytest
import torch
from fairseq.logging import meters, metrics, progress_bar

from fairseq_ray_plugin.activity import Logged
from fairseq_ray_plugin.training import train_loop
from fairseq_ray_plugin.training.record import Point, Points, keep_record


class Writer:
    """In the place of TensorBoard's: what was added, and from where on the rest is void."""

    made: list = []

    def __init__(self, folder, purge_step=None):
        self.points, self.purge_step = [], purge_step
        self.made.append(self)

    def add_text(self, *_):
        pass

    def add_scalar(self, key, value, step):
        self.points.append((step, key, value))

    def flush(self):
        pass


@pytest.fixture
def patched(monkeypatch):
    """fairseq's bars, whose patches are undone after the test."""
    monkeypatch.setattr(progress_bar, "progress_bar", progress_bar.progress_bar)
    monkeypatch.setattr(progress_bar, "SummaryWriter", Writer)
    monkeypatch.setattr(progress_bar, "_tensorboard_writers", {})
    monkeypatch.setattr(Writer, "made", [])
    monkeypatch.setattr(progress_bar.logger, "handlers", [])
    monkeypatch.setattr(progress_bar.logger, "level", logging.INFO)
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)
    return progress_bar


def make_bar(points, tmp_path, on_logged=lambda logged: None, **options):
    keep_record(points, on_logged, lambda: "training")
    options = {"log_format": "json", "log_interval": 1, "epoch": 1} | options
    bar = progress_bar.progress_bar(
        [0] * 10, log_file=str(tmp_path / "log.txt"), tensorboard_logdir="tb", **options
    )
    next(iter(bar))
    return bar


def log(bar, *updates):
    logging.disable(logging.NOTSET)
    for update in updates:
        bar.log({"loss": 1.0 / update, "num_updates": update}, tag="train_inner", step=update)


def text(tmp_path):
    for handler in progress_bar.logger.handlers:
        handler.flush()
    return [line for line in (tmp_path / "log.txt").read_text().splitlines() if "num_upd" in line]


MAKE_BAR = progress_bar.progress_bar


def forget_process():
    """What a new process does not have of the last one; it is silent up to its first update."""
    logging.disable(logging.INFO)
    progress_bar.progress_bar, progress_bar.SummaryWriter = MAKE_BAR, Writer
    progress_bar._tensorboard_writers.clear()
    progress_bar.logger.handlers.clear()


def test_the_survivor_of_a_rank_0_that_wrote_nothing_has_its_point(patched, tmp_path):
    survivor = Points(rank=1)
    log(make_bar(survivor, tmp_path), 1, 2, 3)
    forget_process()
    (tmp_path / "log.txt").write_text("")
    points = Points(rank=0)
    points.restore(survivor.state(3), 3, pending=True)
    assert survivor.state(3)["points"] == points.state(3)["points"], "should it die at once"
    log(make_bar(points, tmp_path), 4)
    assert ["3", "4"] == [line.split('"num_updates": ')[1].strip('"}') for line in text(tmp_path)]
    writer = Writer.made[-1]
    assert 3 == writer.purge_step, "whether it was written or not, it is there once"
    assert [3, 4] == [step for step, *_ in writer.points]


def test_what_is_in_the_file_already_is_not_written_again(patched, tmp_path):
    first = Points(rank=0)
    log(make_bar(first, tmp_path), 1, 2, 3)
    before = text(tmp_path)
    forget_process()
    points = Points(rank=0)  # it goes on after update 1: a snapshot was all that was left
    points.restore(first.state(1), 1, pending=True)
    log(make_bar(points, tmp_path), 2, 3, 4)
    assert before == text(tmp_path)[:3] and 4 == len(text(tmp_path))
    assert [1, 2, 3, 4] == [step for step, *_ in Writer.made[-1].points]


def test_after_a_planned_stop_all_is_there(patched, tmp_path):
    first = Points(rank=1)
    log(make_bar(first, tmp_path), 1, 2)
    first.close()
    points = Points(rank=0)
    points.restore(first.state(2), 2, pending=False)
    assert points._is_written and points._text_is_there


def test_a_validation_that_is_made_again_logs_by_itself(patched, tmp_path):
    survivor = Points(rank=1)
    bar = make_bar(survivor, tmp_path, log_format="none")
    log(bar, 5)
    bar.print({"loss": 2.0, "num_updates": 5}, tag="valid", step=5)
    for pending, tags in ((True, ["train_inner"]), (False, ["train_inner", "valid"])):
        points = Points(rank=0)
        points.restore(survivor.state(5), 5, pending)
        assert tags == [point.tag for point in points._again]


def test_points_of_a_later_update_are_not_part_of_the_state(patched, tmp_path):
    points = Points(rank=0)
    log(make_bar(points, tmp_path), 6, 7)
    points_after_6 = Points(rank=0)
    points_after_6.restore(points.state(6), 6, pending=False)
    assert [6] == [point.step for point in points_after_6._again]


def test_each_line_is_in_the_file_once_in_every_epoch(patched, tmp_path):
    points = Points(rank=0)
    for epoch in (1, 2, 3):
        bar = (
            make_bar(points, tmp_path, epoch=epoch)
            if epoch == 1
            else progress_bar.progress_bar(
                [0], log_file=str(tmp_path / "log.txt"), log_format="simple", epoch=epoch
            )
        )
        bar.print({"loss": 1.0, "num_updates": epoch}, tag="train", step=epoch)
    assert 3 == len(text(tmp_path)), "stock writes 1 + 2 + 3"


def test_what_is_kept_are_numbers_that_any_checkpoint_takes(patched, tmp_path):
    points, said = Points(rank=0), []
    bar = make_bar(points, tmp_path, said.append)
    meter = meters.AverageMeter()
    meter.update(3.0)
    stats = {"loss": 2.5, "lr": torch.tensor(0.1), "x": meter, "num_updates": 9, "odd": object()}
    points_before = len(points.state(9)["points"])
    bar.wrapped_bar.log = lambda *args, **kwargs: None  # which takes no object
    bar.log(stats, tag="train_inner", step=9)
    (_, tag, step, plain, _) = points.state(9)["points"][points_before]
    assert ("train_inner", 9) == (tag, step)
    assert {"loss": 2.5, "lr": pytest.approx(0.1), "x": 3.0, "num_updates": 9} == plain
    assert [Logged(9, 2.5, pytest.approx(0.1))] == said


def test_wandb_has_one_run_and_the_users_own_id_wins(patched, tmp_path, monkeypatch):
    ids = []

    class Bar:
        def __init__(self, wrapped_bar, project, run_name=None):
            import os

            self.wrapped_bar = wrapped_bar
            ids.append((os.environ["WANDB_RUN_ID"], os.environ["WANDB_RESUME"]))

        def __iter__(self):
            return iter(self.wrapped_bar)

        def log(self, *args, **kwargs):
            pass

        print = log

    monkeypatch.setattr(progress_bar, "WandBProgressBarWrapper", Bar)
    for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    make_bar(Points(0), tmp_path, wandb_project="p")
    forget_process()
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    make_bar(Points(0), tmp_path, wandb_project="p")
    assert [("training", "allow"), ("mine", "allow")] == ids


def test_an_epochs_averages_are_logged_once_by_whoever_gets_to_it(monkeypatch):
    printed = []

    def print_aloud(stats, tag, step):
        assert logging.getLogger().manager.disable < logging.INFO
        printed.append((tag, step, stats))

    # a restart's, before its first update
    monkeypatch.setattr(logging.root.manager, "disable", logging.INFO)
    bar = types.SimpleNamespace(print=print_aloud)
    monkeypatch.setattr(progress_bar, "progress_bar", lambda *args, **options: bar)
    names = ("log_format", "log_file", "log_interval", "tensorboard_logdir", "wandb_project")
    common = dict.fromkeys((*names, "no_progress_bar", "azureml_logging"))
    cfg = types.SimpleNamespace(
        common=types.SimpleNamespace(**common),
        distributed_training=types.SimpleNamespace(distributed_rank=0),
        checkpoint=types.SimpleNamespace(save_dir="save"),
    )
    trainer = types.SimpleNamespace(get_num_updates=lambda: 52)
    metrics.reset()
    metrics.log_start_time("wall", round=0)
    with metrics.aggregate("train"):
        metrics.log_scalar("loss", 2.0, weight=3)
    state, points = metrics.state_dict(), Points(0)
    train_loop._end_epoch(points, cfg, trainer, 2)
    train_loop._end_epoch(points, cfg, trainer, 2)
    ((tag, step, stats),) = printed
    assert ("train", 52, 2.0) == (tag, step, stats["loss"])
    metrics.load_state_dict(metrics.state_dict())  # the state after it was logged
    train_loop._end_epoch(points, cfg, trainer, 2)
    assert 1 == len(printed)
    metrics.load_state_dict(state)  # and before
    train_loop._end_epoch(points, cfg, trainer, 2)
    assert 2 == len(printed)
    # a survivor came further than rank 0, and the state is from while it did
    points.add(Point("print", "train", 52, {}, {}))
    metrics.load_state_dict(state)
    train_loop._end_epoch(points, cfg, trainer, 2)
    assert 2 == len(printed) and 0 == metrics.get_meters("train")["loss"].count


def test_averages_that_a_survivor_alone_got_to_are_logged_again(patched, tmp_path):
    survivor = Points(rank=1)
    bar = make_bar(survivor, tmp_path)
    log(bar, 52)
    bar.print({"loss": 2.5, "num_updates": 52}, tag="train", step=52)
    forget_process()
    del Writer.made[:]
    (tmp_path / "log.txt").write_text("")
    points = Points(rank=0)
    points.restore(survivor.state(52), 52, pending=True)  # rank 0 died as it wrote a checkpoint
    assert points.has_averages(52) and not points.has_averages(53)
    make_bar(points, tmp_path)
    assert [(52, "loss", 2.5)] == [p for w in Writer.made for p in w.points if p[2] == 2.5]
    assert 2 == len(text(tmp_path))
