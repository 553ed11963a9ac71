"""Real fairseq code that works with compat, and fails without: run as a program by test_compat.

All patches are applied but those that are given as arguments; what came of each check is printed.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from fairseq_ray_plugin import compat

PACKAGE = Path(compat.__file__).parent.parent


# The checks: each uses fairseq's own code and raises what fairseq raises.


def check_torch_load_of_a_checkpoint() -> None:
    from fairseq import checkpoint_utils

    with tempfile.NamedTemporaryFile() as file:
        state = {"args": argparse.Namespace(arch="transformer"), "extra_state": None}
        checkpoint_utils.torch_persistent_save(state, file.name)
        checkpoint_utils._upgrade_state_dict = lambda state: state  # needs a whole model
        assert checkpoint_utils.load_checkpoint_to_cpu(file.name)["args"].arch == "transformer"


def check_torch_load_of_a_broadcast_object() -> None:
    import torch
    from fairseq.distributed import utils

    cpu, namespace = torch.device("cpu"), argparse.Namespace(arch="transformer")
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        child = os.fork()
        torch.distributed.init_process_group("gloo", store, rank=int(child > 0), world_size=2)
        group = torch.distributed.group.WORLD
        if child == 0:
            utils._broadcast_object_slow(namespace, 0, group, cpu)
            os._exit(0)
        try:
            assert namespace == utils._broadcast_object_slow(None, 0, group, cpu)
        finally:
            os.waitpid(child, 0)
            torch.distributed.destroy_process_group()


def check_numpy_names_in_token_blocks() -> None:
    import torch
    from fairseq.data import TokenBlockDataset

    sentences = [torch.tensor([4, 5, 2]), torch.tensor([6, 2])]
    blocks = TokenBlockDataset(sentences, [3, 2], None, pad=1, eos=2, break_mode="eos")
    assert [6, 2] == blocks[1].tolist()


def check_numpy_names_in_buckets() -> None:
    import numpy
    from fairseq.data import data_utils

    assert [2, 4] == data_utils.get_buckets(numpy.array([1, 2, 3, 4]), 2).tolist()


def check_numpy_names_in_bucketed_pairs() -> None:
    import torch
    from fairseq.data import Dictionary, LanguagePairDataset, bucket_pad_length_dataset

    # get_buckets has a check of its own, and would be the first to fail here
    bucket_pad_length_dataset.get_buckets = lambda sizes, num_buckets: [4]
    sentences = [torch.tensor([4, 2]), torch.tensor([4, 4, 4, 2])]
    pairs = LanguagePairDataset(sentences, [2, 4], Dictionary(), num_buckets=1)
    assert [4, 4] == pairs.bucketed_num_tokens.tolist()


def check_numpy_names_in_span_masks() -> None:
    from fairseq.data.data_utils import compute_mask_indices

    mask = compute_mask_indices((1, 50), None, 0.5, 5, min_masks=1, no_overlap=True)
    assert mask.any()


def check_span_masks() -> None:
    import numpy
    from fairseq.data.data_utils import compute_mask_indices

    masks = []
    for _ in range(2):
        numpy.random.seed(1)
        masks.append(compute_mask_indices((2, 50), None, 0.5, 5, "uniform", 1, min_masks=1))
    assert (masks[0] == masks[1]).all()


def check_torchrun() -> None:
    import torch
    from fairseq.dataclass.configs import DistributedTrainingConfig
    from fairseq.distributed import utils

    if torch.cuda.is_available():
        return
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="1", WORLD_SIZE="2", RANK="1")
    config = DistributedTrainingConfig()
    config.tpu, config.distributed_world_size = False, 1
    utils.infer_init_method(config)
    assert (2, 1) == (config.distributed_world_size, config.distributed_rank)


def check_numpy_names_in_the_dynamic_crf() -> None:
    import torch
    from fairseq.modules import DynamicCRF

    scores, targets = torch.randn(2, 3, 9), torch.randint(9, (2, 3))
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert torch.isfinite(DynamicCRF(9, beam_size=4)(scores, targets, mask)).all()


def encoder_layer() -> Any:
    from fairseq.models.transformer import TransformerConfig
    from fairseq.modules import TransformerEncoderLayer

    config = TransformerConfig()
    config.encoder.embed_dim, config.encoder.ffn_embed_dim = 16, 32
    config.encoder.attention_heads = 2
    return TransformerEncoderLayer(config)


def check_encoder_copies_at_inference() -> None:
    import torch

    layer = encoder_layer().eval()
    layer.load_to_BT = True  # as after loading a checkpoint
    padding = torch.tensor([[True, False, False], [False, False, False]])
    with torch.no_grad():
        # the fast path takes batch-first input, the ordinary one time-first
        shape = (2, 3, 16) if layer.can_use_fastpath else (3, 2, 16)
        assert shape == tuple(layer(torch.randn(shape), padding).shape)


def check_encoder_copies_in_ddp() -> None:
    import torch

    layer = torch.nn.parallel.DistributedDataParallel(encoder_layer(), process_group=alone())
    for _ in range(2):
        layer(torch.randn(3, 2, 16), None).sum().backward()


def check_ddp_on_cpu() -> None:
    import torch
    from fairseq.dataclass.configs import DistributedTrainingConfig
    from fairseq.models.distributed_fairseq_model import DistributedFairseqModel

    config = DistributedTrainingConfig()
    config.tpu, config.ddp_backend, config.device_id = False, "pytorch_ddp", 0
    model, group = torch.nn.Linear(2, 2), alone()
    wrapped = DistributedFairseqModel(config, model, group, torch.device("cpu"))
    assert (1, 2) == tuple(wrapped(torch.zeros(1, 2)).shape)


def check_all_gather_list() -> None:
    from fairseq.distributed import utils

    assert [{"loss": [1, 2]}] == utils.all_gather_list({"loss": [1, 2]}, group=alone())


def check_user_dir_by_name() -> None:
    from fairseq.utils import import_user_module

    import_user_module(argparse.Namespace(user_dir="fairseq_ray_plugin"))


def check_user_dir_by_link() -> None:
    from fairseq.utils import import_user_module

    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "fairseq_ray_plugin"
        link.symlink_to(PACKAGE)
        import_user_module(argparse.Namespace(user_dir=str(link)))


def check_new_processes() -> None:
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(target=import_fairseq)
    process.start()
    process.join()
    assert process.exitcode == 0, "fairseq could not be imported in the new process"


def import_fairseq() -> None:
    import fairseq.options  # noqa: F401


def check_hydra_errors() -> None:
    from hydra._internal.utils import run_and_report

    def fail() -> None:
        raise KeyError("the real error")

    def run_job() -> None:  # hydra shows the frames below this name
        fail()

    with contextlib.redirect_stderr(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        run_and_report(run_job)
    assert "KeyError: 'the real error'" in shown.getvalue()


def check_huffman() -> None:
    from fairseq.data.huffman import HuffmanCodeBuilder

    builder = HuffmanCodeBuilder()
    builder.add_symbols("a", "b", "b", "c")
    code = builder.build_code()
    assert ["b", "c", "a"] == [node.symbol for node in code.decode(code.encode(["b", "c", "a"]))]


def check_sacrebleu() -> None:
    from fairseq_cli import score

    with tempfile.NamedTemporaryFile("w") as file:
        file.write("one two three four\nfive six seven eight\n")
        file.flush()
        sys.argv[1:] = ["--sacrebleu", "--sys", file.name, "--ref", file.name]
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            score.cli_main()
    assert shown.getvalue().splitlines()[-1].startswith("BLEU = 100.00")


def check_sacrebleu_counts() -> None:
    import sacrebleu

    counts = {"correct": [4, 3, 2, 1], "total": [4, 3, 2, 1], "sys_len": 4, "ref_len": 4}
    assert 99 < sacrebleu.compute_bleu(**counts).score  # as tasks/audio_finetuning.py asks


def check_denoising() -> None:
    assert 1024 == parsed("--task", "denoising", "--arch", "bart_base").max_source_positions


def check_legacy_masked_lm() -> None:
    from fairseq.data import Dictionary
    from fairseq.tasks.legacy_masked_lm import LegacyMaskedLMTask

    args = argparse.Namespace(data="/", seed=1, dataset_impl=None)
    with contextlib.suppress(FileNotFoundError):  # so far it came
        LegacyMaskedLMTask(args, Dictionary()).load_dataset("x", data_selector=None, tpu=False)


def check_bart_translation() -> None:
    from fairseq.data import Dictionary
    from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask

    more = {"dataset_impl": None, "upsample_primary": 1, "load_alignments": False}
    args = argparse.Namespace(data="/", langs="a,b", source_lang="a", target_lang="b", **more)
    args.left_pad_source = args.left_pad_target = False
    task = TranslationFromPretrainedBARTTask(args, Dictionary(), Dictionary())
    with contextlib.suppress(FileNotFoundError):  # so far it came
        task.load_dataset("train")


def check_without_dataclass() -> None:
    from fairseq.data import encoders
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    args = parsed("--task", "translation", "--arch", "transformer", "--bpe", "bytes")
    assert encoders.build_bpe(convert_namespace_to_omegaconf(args).bpe).encode("a b")


def check_lists_of_words() -> None:
    from fairseq.dataclass.utils import eval_str_list

    assert ["ltr", "phn"] == eval_str_list("ltr,phn", str) == eval_str_list("['ltr', 'phn']", str)


def check_bf16() -> None:
    options = ("--task", "translation", "--arch", "transformer", "--bf16")
    assert not parsed(*options).tpu, "--bf16 asks for a TPU"
    assert parsed(*options, "--tpu").tpu


def check_fp16_on_cpu() -> None:
    import torch
    from fairseq.optim.fp16_optimizer import FP16Optimizer

    params = [torch.nn.Parameter(torch.full((size,), size).half()) for size in (1, 2)]
    flat = FP16Optimizer.build_fp32_params(None, params)
    assert {None: [1.0, 2.0, 2.0]} == {device: p.tolist() for device, p in flat.items()}


def check_spectral_norm() -> None:
    from fairseq.data import Dictionary
    from fairseq.models.roberta import RobertaModel, base_architecture

    sizes = {"encoder_layers": 1, "encoder_attention_heads": 1, "encoder_embed_dim": 4}
    args = argparse.Namespace(**sizes, max_positions=8, spectral_norm_classification_head=True)
    base_architecture(args)
    task = argparse.Namespace(source_dictionary=Dictionary())
    model = RobertaModel.build_model(args, task)
    model.register_classification_head("head", num_classes=2)
    model.load_state_dict(model.state_dict(), strict=True)


def check_libnat() -> None:
    import importlib.util

    from fairseq_cli import train

    if importlib.util.find_spec("fairseq.libnat"):
        return
    cfg: Any = types.SimpleNamespace(model=argparse.Namespace(arch="insertion_transformer"))
    try:
        train.main(cfg)
    except SystemExit as error:
        assert "--arch insertion_transformer needs fairseq's libnat" in str(error)


def check_loaders() -> None:
    from torch.utils.data import DataLoader

    loader = iter(DataLoader([1, 2], num_workers=1))  # type: ignore[arg-type]
    feeder = loader._index_queues[0]._notempty  # type: ignore[attr-defined]
    reader, writer = os.pipe()
    with feeder:  # its thread is at rest: otherwise the child might even hang
        child = os.fork()
    if child == 0:
        try:
            loader.__del__()  # type: ignore[attr-defined]
        except AssertionError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    if error := os.read(reader, 1000).decode():
        raise AssertionError(error)
    workers = loader._workers  # type: ignore[attr-defined]
    loader.__del__()  # type: ignore[attr-defined]
    assert not any(worker.is_alive() for worker in workers), "its own it ends"


def parsed(*options: str) -> argparse.Namespace:
    """As fairseq-train parses the options."""
    from fairseq import options as fairseq_options

    parser = fairseq_options.get_training_parser()
    return fairseq_options.parse_args_and_arch(parser, ["data", *options])


def alone() -> Any:
    """A gloo group of this process only."""
    import torch

    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return torch.distributed.group.WORLD


EXPECTED_WITHOUT_PATCH: dict[str, str | None] = {
    "torch_load_of_a_checkpoint": "Weights only load failed",
    "torch_load_of_a_broadcast_object": "Weights only load failed",
    "numpy_names_in_token_blocks": "no attribute 'compat'",
    "numpy_names_in_buckets": "unexpected keyword argument 'interpolation'",
    "numpy_names_in_bucketed_pairs": "no attribute 'compat'",
    "numpy_names_in_span_masks": "no attribute 'int'",
    "numpy_names_in_the_dynamic_crf": "no attribute 'float'",
    "encoder_copies_at_inference": "Mask Type should be defined",
    "encoder_copies_in_ddp": "Expected to have finished reduction in the prior iteration",
    "ddp_on_cpu": "DistributedDataParallel device_ids",
    "all_gather_list": "torch.cuda.ByteTensor",
    "new_processes": "could not be imported in the new process",
    "hydra_errors": "unexpected keyword argument 'etype'",
    "huffman": "no attribute 'rindex'",
    "sacrebleu": "should be a sequence of strings",
    "sacrebleu_counts": "no attribute 'compute_bleu'",
    "denoising": "conflicting option string",
    "legacy_masked_lm": "unexpected keyword argument 'data_selector'",
    "bart_translation": "no attribute 'args'",
    "without_dataclass": "Could not load bpe/bytes",
    "lists_of_words": "malformed node",
    "bf16": "--bf16 asks for a TPU",
    "fp16_on_cpu": "CUDA",
    "spectral_norm": "out_proj.weight",
    "libnat": "no attribute 'common'",
    "loaders": "can only test a child process",
    "span_masks": None,
    "torchrun": None,
    "user_dir_by_name": "FileNotFoundError",
    "user_dir_by_link": "not globally unique",
}
"""What each check fails with where its patch is left out, with the versions that are pinned.

None: it fails with fairseq main alone (see docs/forks.md).
"""


def make_all_checks(skip: list[str]) -> None:
    """What came of each check is printed as the last line: ``{check: "ok" or the error}``."""
    compat.apply(skip=skip)
    compat.apply()  # a second call changes nothing
    os.chdir("/")
    import fairseq.models.transformer  # noqa: F401

    outcomes = {}
    for check in EXPECTED_WITHOUT_PATCH:
        try:
            globals()[f"check_{check}"]()
            outcomes[check] = "ok"
        except Exception as error:
            outcomes[check] = f"{type(error).__name__}: {error}"
    print(json.dumps(outcomes))


if __name__ == "__main__":
    make_all_checks(sys.argv[1:])
