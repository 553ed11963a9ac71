"""Whatever the precision, a state returns bit for bit, also one that is held within an update."""

import functools

import pytest
import torch
import trainers
from fairseq import checkpoint_utils
from runs import same

from fairseq_ray_plugin.training import exact, raw
from fairseq_ray_plugin.training.boundary import EXTRA, Boundary, StateKeeper

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=trainers.DEVICES)
def device(request, monkeypatch):
    """Where torch's scaler for --amp scales, too: fairseq's choice of one does nothing on CPUs."""
    scaler = functools.partial(torch.amp.GradScaler, request.param)
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", scaler)
    return request.param


@pytest.fixture(params=trainers.PRECISIONS)
def precision(request):
    return trainers.PRECISIONS[request.param]


def begin(precision, device, model=trainers.Normalized, **more):
    trainer = trainers.make(model, device, **precision, **more)
    keeper = StateKeeper(0, 1)
    keeper.attach(trainer, Boundary(0, {}))
    return trainer, keeper


def put_by(keeper, path):
    keeper.put_by(str(path))
    return timeless(raw.read(str(path)))


def timeless(state):
    """All but how long it took."""
    extra = state["extra_state"]
    del extra["previous_training_time"], extra["metrics"]
    return state


def go_on_from(path, precision, device, model, with_ema):
    trainer = trainers.make(model, device, with_ema, **precision)
    with pytest.MonkeyPatch.context() as only_here:  # as `checkpoint_hook` has it
        only_here.setattr(
            checkpoint_utils, "load_checkpoint_to_cpu", lambda path, **options: raw.read(path)
        )
        extra = trainer.load_checkpoint(str(path))
    exact.restore(trainer, extra[EXTRA]["left_out"])
    trainer._optim_history.pop()
    keeper = StateKeeper(0, 1)
    keeper.attach(trainer, Boundary(trainer.get_num_updates(), {"position": 3}))
    return trainer, keeper


@pytest.mark.parametrize("with_ema", [False, True], ids=["", "ema"])
def test_who_goes_on_from_a_state_trains_as_if_nothing_had_been(
    with_ema, precision, device, tmp_path
):
    # fairseq has no average of what a BatchNorm counts
    model = trainers.Line if with_ema else trainers.Normalized
    trainer, keeper = begin(precision, device, model, with_ema=with_ema)
    trainers.train(trainer, keeper, 3)
    keeper.record(Boundary(3, {"epoch": 1, "position": 3}))
    keeper.put_by(str(tmp_path / "state.raw"))
    trainers.train(trainer, keeper, 3)
    other, others_keeper = go_on_from(tmp_path / "state.raw", precision, device, model, with_ema)
    trainers.train(other, others_keeper, 3)
    states = put_by(keeper, tmp_path / "one"), put_by(others_keeper, tmp_path / "other")
    for part in ("model", "criterion", "last_optimizer_state", "task_state"):
        assert same(states[0][part], states[1][part]), part
    extras = [state["extra_state"] for state in states]
    for part in ("ema", "ema_fp32_params") if with_ema else ():
        assert same(extras[0][part], extras[1][part]), part
    assert same(extras[0][EXTRA]["left_out"], extras[1][EXTRA]["left_out"])
    assert not same(states[0]["model"], raw.read(str(tmp_path / "state.raw"))["model"])


class Dead(RuntimeError):
    """The other end of a collective is."""


def dies_within_an_update(trainer):
    def fail(*args):
        raise Dead

    trainer.optimizer.all_reduce_grads = fail
    with pytest.raises(Dead):
        trainers.update(trainer)


@pytest.mark.parametrize("model", [trainers.Line, trainers.Normalized])
def test_a_state_that_is_held_within_an_update_is_that_of_the_boundary(
    model, precision, device, tmp_path
):
    trainer, keeper = begin(precision, device, model)
    trainers.train(trainer, keeper, 2)
    at_boundary = put_by(keeper, tmp_path / "boundary")
    dies_within_an_update(trainer)
    assert 2 == keeper.freeze_after_failure()
    keeper.save(str(tmp_path / "held"))
    held = timeless(raw.read(str(tmp_path / "held")))
    assert same(at_boundary, held)
    assert "norm.running_mean" in held["model"] or model is trainers.Line


def test_a_model_whose_forward_changes_it_was_changed(device, tmp_path):
    """Else the test above would show nothing."""
    trainer, keeper = begin({}, device)
    trainers.train(trainer, keeper, 2)
    before = trainer.model.norm.running_mean.clone()
    dies_within_an_update(trainer)
    assert not torch.equal(before, trainer.model.norm.running_mean)


@pytest.mark.parametrize("kind", ["fp16_flat", "fp16_unflat", "fp16_lean"])
def test_a_scale_that_overflowed_within_an_update_is_that_of_the_boundary(kind, device, tmp_path):
    trainer, keeper = begin(trainers.PRECISIONS[kind], device)
    trainers.train(trainer, keeper, 3)
    at_boundary = put_by(keeper, tmp_path / "boundary")
    scale = trainer.optimizer.scaler.loss_scale
    with pytest.raises(OverflowError):
        trainer.optimizer.scaler.check_overflow(float("inf"))
    assert scale != trainer.optimizer.scaler.loss_scale
    keeper.freeze()
    keeper.save(str(tmp_path / "held"))
    assert same(at_boundary, timeless(raw.read(str(tmp_path / "held"))))
    assert scale == at_boundary["last_optimizer_state"]["loss_scale"]


@pytest.fixture
def overflowing(device, tmp_path):
    """A trainer with --amp whose next update overflows once; torch's scaler, on a CPU too."""
    trainer, keeper = begin({"amp": True}, device, trainers.Line)
    trainer.optimizer._grad_scaler = torch.amp.GradScaler(
        device, init_scale=2.0**127, backoff_factor=2.0**-125
    )
    keeper.record(Boundary(0, {}))
    return trainer, keeper


def test_while_amp_makes_an_update_again_the_state_is_that_of_the_last_boundary(
    overflowing, tmp_path
):
    trainer, keeper = overflowing
    at_boundary = put_by(keeper, tmp_path / "boundary")
    held, reduce = [], trainer.optimizer.all_reduce_grads

    def all_reduce_grads(module):
        if trainer._amp_retries:
            held.append(keeper.freeze(timeout_s=0))
            raise Dead
        reduce(module)

    trainer.optimizer.all_reduce_grads = all_reduce_grads
    with pytest.raises(Dead):
        trainers.update(trainer)
    assert [0] == held
    assert 2.0**127 > trainer.optimizer.scaler.get_scale()
    keeper.save(str(tmp_path / "held"))
    state = timeless(raw.read(str(tmp_path / "held")))
    assert same(at_boundary, state)
    left_out = state["extra_state"][EXTRA]["left_out"]
    assert (2.0**127, 0) == (left_out["scaler"]["scale"], left_out["amp_retries"])


def test_what_amp_has_made_again_is_a_boundary(overflowing, tmp_path):
    trainer, keeper = overflowing
    trainers.train(trainer, keeper)
    assert 1 == trainer._amp_retries
    state = put_by(keeper, tmp_path / "state")
    assert 1 == state["extra_state"][EXTRA]["left_out"]["amp_retries"]
    assert 1 == keeper.freeze()
