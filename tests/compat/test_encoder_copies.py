"""Encoder layers without stock fairseq's copies of parameters: the same training, the same files.

What is patched is patched at import, so trainers are run in child processes: this file, run as a
program, does what is asked of it with fairseq's own ``Trainer``, as it is or as we have it.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import data
import pytest
import torch

from fairseq_ray_plugin import compat

COPIES = {
    *("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias"),
    *("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"),
}
FP16 = ("--fp16", "--fp16-init-scale", "4")
VARIANTS = {
    "fp32": (),
    "ema": ("--store-ema", "--ema-fp32", "--ema-decay", "0.9"),
    "sgd": ("--optimizer", "sgd", "--momentum", "0.9"),
    "frozen": (),
    "fp16": (*FP16, "--fp16-no-flatten-grads"),
    "fp16_flat": FP16,
    "fp16_lean": (*FP16, "--memory-efficient-fp16"),
}


# what the child processes do


@functools.cache
def configuration(variant, text):
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    arguments = [
        *(text, *data.MASKED_LM, "--train-subset", "valid", "--weight-decay", "0.1"),
        *("--batch-size", "2", "--tokens-per-sample", "16", *VARIANTS[variant]),
    ]
    if "sgd" in arguments:
        arguments.remove("--adam-betas")
        arguments.remove("(0.9, 0.98)")
    return convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), arguments)
    )


def trainer_of(variant, text):
    """A trainer, and the mini-batches that it is to be fed with."""
    from fairseq import tasks
    from fairseq.trainer import Trainer

    cfg = configuration(variant, text)
    torch.manual_seed(1)
    task = tasks.setup_task(cfg.task)
    task.load_dataset("valid")
    model = task.build_model(cfg.model)
    if variant == "frozen":
        model.encoder.sentence_encoder.layers[0].requires_grad_(False)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    itr = trainer.get_train_iterator(1).next_epoch_itr(shuffle=False)
    return trainer, [next(itr) for _ in range(12)]


def train(variant, text, folder, begin, end, left_out=False):
    """Train from checkpoint `begin`, if any, and write the one after each of the `end` updates."""
    from fairseq_ray_plugin.training import exact

    trainer, batches = trainer_of(variant, text)
    position = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 1}}
    if begin is not None:
        extra_state = trainer.load_checkpoint(str(folder / begin))
        if left_out:
            exact.restore(trainer, extra_state["left_out"])
    for name, update in end.items():
        for batch in batches[trainer.get_num_updates() : update]:
            trainer.train_step([batch])
        trainer.consolidate_optimizer()
        trainer.save_checkpoint(str(folder / name), position | {"left_out": exact.collect(trainer)})


def write_stock(variant, text, folder):
    train(variant, text, folder, None, {"stock-0": 0, "stock-6": 6, "stock-12": 12})
    train(variant, text, folder, "stock-6", {"stock-6-stock-12": 12})


def write_ours(variant, text, folder):
    train(variant, text, folder, None, {"ours-0": 0, "ours-6": 6})
    train(variant, text, folder, "stock-6", {"stock-6-ours-12": 12})
    train(variant, text, folder, "ours-6", {"ours-6-ours-12": 12})
    train(variant, text, folder, "stock-6", {"stock-6-exact-12": 12}, left_out=True)


def read_ours(variant, text, folder):
    train(variant, text, folder, "ours-6", {"ours-6-stock-12": 12})


def count_parameters():
    """Those of RoBERTa large, without making them."""
    from argparse import Namespace

    from fairseq.data import Dictionary
    from fairseq.models.roberta import RobertaModel
    from fairseq.models.roberta.model import roberta_large_architecture

    args, dictionary = Namespace(max_positions=512), Dictionary()
    for number in range(50265 - len(dictionary)):
        dictionary.add_symbol(str(number))
    roberta_large_architecture(args)
    torch.nn.Module.apply = lambda module, initialize: module  # there are no values
    with torch.device("meta"):
        model = RobertaModel.build_model(args, Namespace(source_dictionary=dictionary))
    print(sum(parameter.numel() for parameter in model.parameters()))


def compile_to_torchscript():
    from compat_checks import encoder_layer

    layer, x = encoder_layer().eval(), torch.randn(3, 2, 16)
    torch.testing.assert_close(torch.jit.script(layer)(x, None), layer(x, None))


def child(what, *arguments, stock=False):
    command = [sys.executable, __file__, what, "stock" if stock else "ours", *map(str, arguments)]
    environment = data.environment()
    environment["PYTHONPATH"] += f"{os.pathsep}{Path(data.__file__).parent}"
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


# the tests


@pytest.fixture(scope="module")
def checkpoints(english, tmp_path_factory):
    """Variant -> name of a file -> what is in it; those of stock fairseq were written by itself."""
    folder = tmp_path_factory.mktemp("checkpoints")
    child("write_stock", english, folder, stock=True)
    child("write_ours", english, folder)
    child("read_ours", english, folder, stock=True)
    return {
        variant: {
            path.name: torch.load(path, weights_only=False) | {"size": path.stat().st_size}
            for path in (folder / variant).iterdir()
        }
        for variant in VARIANTS
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_without_the_copies_is_stock_fairseqs_bit_for_bit(variant, checkpoints):
    states = checkpoints[variant]
    for update in (0, 6):
        check_same(states[f"stock-{update}"], states[f"ours-{update}"])
    assert not copies_in(states["ours-6"]["model"])
    assert 2 * len(COPIES) == len(copies_in(states["stock-6"]["model"]))
    assert states["ours-6"]["size"] < states["stock-6"]["size"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_we_go_on_from_stock_fairseqs_checkpoint_and_it_from_ours_bit_for_bit(variant, checkpoints):
    states = checkpoints[variant]
    expected = states["stock-6-stock-12"]
    for name in ("stock-6-ours-12", "ours-6-stock-12", "ours-6-ours-12"):
        check_same(expected, states[name])
    assert not copies_in(states["stock-6-ours-12"]["model"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_with_32_bit_copies_returns_bit_for_bit(variant, checkpoints):
    """As our own snapshots were, when the copies were in our models."""
    states = checkpoints[variant]
    check_same(states["stock-12"], states["stock-6-exact-12"])


def check_same(stock, other):
    """The other state is stock fairseq's, but for copies."""
    pairs = [(stock["model"], other["model"])]
    extra, extra_there = stock["extra_state"], other["extra_state"]
    for part in ("ema", "ema_fp32_params"):
        pairs.append((extra.get(part, {}), extra_there.get(part, {})))
    for tensors, tensors_there in pairs:
        assert tensors.keys() - copies_in(tensors) == tensors_there.keys() - copies_in(tensors)
        for name in tensors.keys() - copies_in(tensors):
            assert torch.equal(tensors[name], tensors_there[name]), name
    optimizer, optimizer_there = stock["last_optimizer_state"], other["last_optimizer_state"]
    assert optimizer["param_groups"] == optimizer_there["param_groups"]
    state, state_there = optimizer["state"], optimizer_there["state"]
    assert state.keys() >= state_there.keys()
    for number in state_there:
        for key, value in state[number].items():
            if torch.is_tensor(value):
                assert torch.equal(value, state_there[number][key]), (number, key)
            elif number in trained(state):
                assert value == state_there[number][key], (number, key)
    assert trained(state) <= state_there.keys()


def copies_in(tensors):
    return {name for name in tensors if name.rpartition(".")[2] in COPIES}


def trained(state):
    """The numbers of parameters that gradients have reached."""
    return {
        number
        for number, values in state.items()
        if any(torch.is_tensor(value) and value.any() for value in values.values())
    }


def test_roberta_large_has_355_million_parameters_not_657():
    assert 355 == int(child("count_parameters")) // 10**6
    assert 657 == int(child("count_parameters", stock=True)) // 10**6


def test_layers_compile_to_torchscript():
    child("compile_to_torchscript")


def main(what, whose, *arguments):
    compat.apply(skip={"encoder_copies"} if whose == "stock" else ())
    torch.cuda.current_device = lambda: None  # flat parameters are where this is: on the CPU
    if not arguments:
        globals()[what]()
        return
    text, folder = arguments
    for variant in VARIANTS:
        os.makedirs(Path(folder) / variant, exist_ok=True)
        globals()[what](variant, text, Path(folder) / variant)


if __name__ == "__main__":
    main(*sys.argv[1:])
