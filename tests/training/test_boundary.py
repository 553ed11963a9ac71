"""A rank's state can be read at any time, and is never that of the middle of an update."""

import contextlib
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import trainers
from trainers import train

from fairseq_ray_plugin.training import raw
from fairseq_ray_plugin.training.boundary import EXTRA, Boundary, StateKeeper

pytestmark = pytest.mark.timeout(60)

WAIT_S = 10
"""A test fails that waits longer for what it expects."""

A_WHILE_S = 0.1
"""In which a thread that nothing stops would be done a hundred times."""


@pytest.fixture
def trainer():
    return trainers.make()


@pytest.fixture
def keeper(trainer):
    """Holds the state before the first update."""
    keeper = StateKeeper(0, 1)
    keeper.attach(trainer, Boundary(0, {"position": 0}))
    return keeper


@pytest.fixture
def others():
    """Other threads."""
    with ThreadPoolExecutor() as others:
        yield others


def stays(function, *arguments):
    """Whether it does not return: a thread is in it until this process ends."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    thread.join(A_WHILE_S)
    return thread.is_alive()


class Stop:
    """Stands in for a function: whoever calls it waits in the middle of it."""

    def __init__(self, function):
        self._function = function
        self._is_reached, self._goes_on = threading.Event(), threading.Event()

    def __call__(self, *args, **kwargs):
        self._is_reached.set()
        assert self._goes_on.wait(WAIT_S)
        return self._function(*args, **kwargs)

    def until_reached(self):
        assert self._is_reached.wait(WAIT_S)

    def go_on(self):
        self._goes_on.set()


@pytest.fixture
def optimizer_step(trainer, keeper, others):
    """That of an update which is under way in another thread."""
    stop = trainer.optimizer.step = Stop(trainer.optimizer.step)
    update = others.submit(train, trainer, keeper)
    stop.until_reached()
    yield stop
    stop.go_on()
    update.result(WAIT_S)


def params(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def saved(keeper, folder):
    path = folder / "state.pt"
    keeper.save(str(path))
    return raw.read(str(path))


def assert_same(expected, actual):
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


# freezing


def test_between_two_updates_the_state_is_that_of_the_last_boundary(trainer, keeper, tmp_path):
    train(trainer, keeper, 3)
    assert 3 == keeper.freeze() == keeper.freeze()
    state = saved(keeper, tmp_path)
    assert_same(params(trainer), state["model"])
    assert {"position": 3} == state["extra_state"]["train_iterator"]


def test_who_freezes_within_an_update_waits_and_gets_the_state_after_it(
    trainer, keeper, others, optimizer_step, tmp_path
):
    before = params(trainer)
    assert keeper.freeze(timeout_s=0) is None
    frozen = others.submit(keeper.freeze)
    optimizer_step.go_on()
    assert 1 == frozen.result(WAIT_S)
    state = saved(keeper, tmp_path)
    assert_same(params(trainer), state["model"])
    assert not torch.equal(before["linear.weight"], state["model"]["linear.weight"])


def test_all_who_freeze_at_the_same_time_have_the_state_as_soon_as_there_is_one(
    keeper, others, optimizer_step
):
    frozen = [others.submit(keeper.freeze, 3 * WAIT_S) for _ in range(3)]
    optimizer_step.go_on()
    assert [1, 1, 1] == [one.result(WAIT_S) for one in frozen]


def test_an_optimizer_step_that_takes_too_long_leaves_no_state_and_training_goes_on(
    trainer, keeper, optimizer_step, tmp_path
):
    assert keeper.freeze(timeout_s=0.01) is None
    with pytest.raises(RuntimeError, match="no state to save"):
        keeper.save(str(tmp_path / "state.pt"))
    optimizer_step.go_on()
    assert 1 == keeper.freeze()


def test_a_step_that_began_after_the_freeze_never_changes_the_state(trainer, keeper, tmp_path):
    train(trainer, keeper)
    before = params(trainer)
    assert 1 == keeper.freeze()
    assert stays(train, trainer, keeper)
    assert any(p.grad is not None for p in trainer.model.parameters()), "it has come so far"
    assert_same(before, params(trainer))
    assert 1 == saved(keeper, tmp_path)["optimizer_history"][-1]["num_updates"]


def test_a_boundary_that_comes_after_the_freeze_is_none(trainer, keeper):
    train(trainer, keeper)
    assert 1 == keeper.freeze()
    assert stays(keeper.record, Boundary(1, {}, val_loss=2.5))
    assert keeper.boundary.val_loss is None


def test_amp_repeats_the_optimizer_step_of_one_update(trainer, keeper):
    trainer.task.optimizer_step(trainer.optimizer, trainer.model, 0)
    assert keeper.freeze(timeout_s=0) is None
    train(trainer, keeper)  # from within, in fairseq
    assert 1 == keeper.freeze()


def test_a_state_can_be_held_as_soon_as_it_is_loaded(keeper):
    assert 0 == keeper.freeze()


def test_before_a_state_is_loaded_there_is_none_and_none_is_loaded_after(trainer):
    keeper = StateKeeper(0, 1)
    assert keeper.freeze() is None
    with pytest.raises(RuntimeError, match="no state to save"):
        keeper.save("state.pt")
    assert stays(keeper.attach, trainer, Boundary(0, {}))


def fail(*args):
    raise RuntimeError("connection reset by peer")


def test_after_a_failure_within_an_update_there_is_no_state(trainer, keeper):
    train(trainer, keeper)
    trainer.optimizer.step = fail
    with pytest.raises(RuntimeError, match="by peer"):
        train(trainer, keeper)
    assert keeper.freeze_after_failure() is None
    assert keeper.freeze(timeout_s=0.01) is None


def test_after_a_failure_between_two_updates_there_is_the_state_before_it(trainer, keeper):
    train(trainer, keeper)
    trainer.optimizer.all_reduce_grads = fail
    with pytest.raises(RuntimeError, match="by peer"):
        train(trainer, keeper)
    assert 1 == keeper.freeze_after_failure()


# resting


def test_training_rests_at_a_boundary_where_that_was_asked_for(trainer, keeper):
    held = []
    keeper.on_hold = held.append
    train(trainer, keeper)
    keeper.rest()
    assert [] == held
    keeper.hold_requested.set()
    assert stays(keeper.rest)
    assert [1] == held


# learning rates


def test_the_learning_rate_step_at_an_epochs_end_is_still_to_come_until_it_is_made(
    trainer, keeper, tmp_path
):
    train(trainer, keeper)
    trainer.lr_step(1, 2.0)
    keeper.record(Boundary(1, {}, lr_step=(2, 3.0)))
    assert (2, 3.0) == keeper.boundary.lr_step
    trainer.lr_step(2, 3.0)  # no better than before
    assert keeper.boundary.lr_step is None
    assert 1 == keeper.freeze()
    assert 0.05 == trainer.get_lr()
    assert saved(keeper, tmp_path)["extra_state"][EXTRA]["lr_step"] is None


def test_a_learning_rate_step_after_the_freeze_changes_nothing(trainer, keeper, tmp_path):
    train(trainer, keeper)
    trainer.lr_step(1, 2.0)
    keeper.record(Boundary(1, {}, lr_step=(2, 3.0)))
    assert 1 == keeper.freeze()
    assert stays(trainer.lr_step, 2, 3.0)
    assert 0.1 == trainer.get_lr()
    assert (2, 3.0) == saved(keeper, tmp_path)["extra_state"][EXTRA]["lr_step"]


# files


def test_another_thread_freezes_and_saves_while_the_state_is_put_by(
    trainer, keeper, others, tmp_path, monkeypatch
):
    train(trainer, keeper)
    write = Stop(raw.write)
    monkeypatch.setattr(raw, "write", write)
    put_by = others.submit(keeper.put_by, str(tmp_path / "put_by.pt"))
    write.until_reached()
    monkeypatch.undo()
    assert 1 == keeper.freeze()
    state = saved(keeper, tmp_path)
    write.go_on()
    assert 1 == put_by.result(WAIT_S)
    same = raw.read(str(tmp_path / "put_by.pt"))
    assert_same(state["model"], same["model"])
    assert ["put_by.pt", "state.pt"] == sorted(path.name for path in tmp_path.iterdir())


def test_nothing_is_put_by_within_an_update(trainer, keeper, optimizer_step, tmp_path):
    with pytest.raises(AssertionError):
        keeper.put_by(str(tmp_path / "state.pt"))


def test_without_being_frozen_nothing_is_saved(trainer, keeper, tmp_path):
    train(trainer, keeper)
    with pytest.raises(RuntimeError, match="no state to save"):
        keeper.save(str(tmp_path / "state.pt"))
    assert [] == [*tmp_path.iterdir()]


@contextlib.contextmanager
def no_room_on_disk():
    """Files end after a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_for_which_there_is_no_room_leaves_the_old_one_and_nothing_else(keeper, tmp_path):
    path = tmp_path / "state.pt"
    path.write_text("an old one")
    with no_room_on_disk(), pytest.raises((OSError, RuntimeError)):
        keeper.put_by(str(path))
    assert "an old one" == path.read_text()
    assert [path] == [*tmp_path.iterdir()]
    keeper.put_by(str(path))
    assert "model" in raw.read(str(path))


def test_a_state_is_whole_also_where_checkpoints_are_not(trainer, keeper, tmp_path):
    trainer.cfg.checkpoint.no_save_optimizer_state = True
    train(trainer, keeper)
    keeper.record(
        Boundary(1, {"position": 1}, best=2.0, early_stop=(2.0, 3), val_loss=2.5, pending=True)
    )
    keeper.freeze()
    state = saved(keeper, tmp_path)
    assert 2 == len(state["last_optimizer_state"]["state"]), "a weight and a bias"
    extra = state["extra_state"]
    assert (2.0, 2.5) == (extra["best"], extra["val_loss"])
    assert ((2.0, 3), True) == (extra[EXTRA]["early_stop"], extra[EXTRA]["pending"])
