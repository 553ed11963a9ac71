"""What ranks inherit is what each of them would have made."""

import copy
import logging
import threading

import numpy as np
import pytest
import torch
from fairseq import tasks, utils
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf

from fairseq_ray_plugin.training import inherited

logger = logging.getLogger("a user's task")


class Task:
    """Makes a model as `make` does, and draws from numpy and torch."""

    make = staticmethod(lambda cfg: torch.nn.Linear(30, 30))

    def __init__(self, cfg):
        self.cfg, self.noise = cfg, np.random.rand(3).tolist()
        logger.info("a task is made")

    def build_model(self, model_cfg):
        return type(self).make(self.cfg)


@pytest.fixture
def cfg(monkeypatch):
    cfg = OmegaConf.structured(FairseqConfig())
    OmegaConf.set_struct(cfg, False)
    cfg.task, cfg.model = {"_name": "a"}, {"_name": "b"}
    monkeypatch.setattr(tasks, "setup_task", Task)
    return cfg


def main(cfg):
    """As fairseq's begins; the last is what is drawn next."""
    np.random.seed(cfg.common.seed)
    utils.set_torch_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    drawn = [*np.random.rand(3).tolist(), *torch.rand(3).tolist()]
    return task.noise, [p.tolist() for p in model.parameters()], drawn


def test_a_rank_has_the_model_and_the_generators_that_it_would_have_made(cfg):
    expected = main(cfg)
    made = inherited.make(cfg)
    assert expected == main(cfg), "nothing is changed where it is not used"
    torch.rand(7)
    inherited.use(made, cfg)
    assert expected == main(cfg)
    assert made.model is not made.task.build_model(cfg.model), "another is made, as ever"
    assert expected == main(cfg), "for once"


def test_a_gpu_that_is_there_is_not_touched(cfg, monkeypatch):
    expected = main(cfg)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = inherited.make(cfg)
    monkeypatch.undo()
    monkeypatch.setattr(tasks, "setup_task", Task)
    inherited.use(made, cfg)
    assert expected == main(cfg)


def test_what_starts_cuda_is_out_of_reach_by_whatever_way_it_is_called(monkeypatch):
    started = []
    monkeypatch.setattr(torch._C, "_cuda_init", lambda: started.append("CUDA"), raising=False)
    with inherited._no_device(), pytest.raises(inherited.NotInherited):
        torch._C._cuda_init()
    assert not started
    torch._C._cuda_init()
    assert started, "it is as it was"


def test_what_was_said_is_said_by_the_rank(cfg, caplog):
    caplog.set_level(logging.INFO)
    made = inherited.make(cfg)
    assert [] == caplog.messages
    inherited.use(made, cfg)
    main(cfg)
    assert ["a task is made"] == caplog.messages


def start_thread(cfg):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return torch.nn.Linear(3, 3)


def fail(cfg):
    raise ValueError("no such file\nand more")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda cfg: torch.nn.Linear(torch.distributed.get_world_size(), 3), "get_world_size"),
        (lambda cfg: cfg._get_root().distributed_training.distributed_rank, "Missing"),
        (lambda cfg: cfg._get_root().optimization.update_freq, "Missing"),
        (lambda cfg: torch.cuda._lazy_init(), "_lazy_init"),
        (lambda cfg: torch.cuda.get_rng_state(), "_cuda_init|not compiled with CUDA"),
        (start_thread, "threads"),
        (fail, "ValueError: no such file"),
    ],
)
def test_what_only_a_rank_can_make_is_not_inherited(make, reason, cfg, monkeypatch):
    monkeypatch.setattr(Task, "make", staticmethod(make))
    before = OmegaConf.to_container(cfg), torch.distributed.get_world_size, torch.cuda._lazy_init
    with pytest.raises(inherited.NotInherited, match=reason) as raised:
        inherited.make(cfg)
    assert "\n" not in str(raised.value)
    after = OmegaConf.to_container(cfg), torch.distributed.get_world_size, torch.cuda._lazy_init
    assert before == after


def values_of(model):
    return [tensor.tolist() for tensor in (*model.parameters(), *model.buffers())]


def test_models_of_one_node_have_the_same_pages_and_each_its_own_values(tmp_path):
    path = str(tmp_path / "model")
    torch.manual_seed(1)
    one = torch.nn.Sequential(torch.nn.Linear(1000, 1000), torch.nn.Linear(1000, 1000))
    one[0].weight.data[0, 0] = float("nan")
    other = copy.deepcopy(one)
    other[1].weight.data[-1, -1] += 1
    other[1].bias.data += 1
    expected = [values_of(model)[1:] for model in (one, other)]
    for model in (one, other):
        inherited.share(model, path)
    assert expected == [values_of(model)[1:] for model in (one, other)]
    weights = [model[0].weight.data_ptr() for model in (one, other)]
    assert all(backing_file(address) == path for address in weights)
    assert backing_file(other[1].weight.data_ptr()) != path, "it has other values"
    one[0].weight.data.fill_(7)
    assert 7 not in other[0].weight


def backing_file(address):
    with open("/proc/self/maps") as file:
        for line in file:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if begin <= address < end:
                return line.split()[-1]


def test_where_there_is_no_room_each_has_a_model_of_its_own(tmp_path):
    model = torch.nn.Linear(3, 3)
    expected = values_of(model)
    inherited.share(model, str(tmp_path / "gone" / "model"))
    assert expected == values_of(model)
