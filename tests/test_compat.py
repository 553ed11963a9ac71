"""Each patch of ``compat`` repairs real fairseq code that fails without it; fairseq's tools work.

A patch acts at import, so the checks run in child processes: this file, run as a program, applies
all patches but those it is given, makes every check and prints what came of each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from data import environment

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


def alone() -> Any:
    """A gloo group of this process only."""
    import torch

    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return torch.distributed.group.WORLD


EXPECTED_WITHOUT_PATCH = {
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
    "user_dir_by_name": "FileNotFoundError",
    "user_dir_by_link": "not globally unique",
}


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


def outcomes(skip: list[str]) -> dict[str, str]:
    command = [sys.executable, __file__, *skip]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


def python(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def patched() -> dict[str, str]:
    return outcomes(skip=[])


@pytest.fixture(scope="module")
def unpatched() -> dict[str, str]:
    return outcomes(skip=[name for name in compat.PATCHES if name != "dataclass_defaults"])


@pytest.mark.parametrize("check", EXPECTED_WITHOUT_PATCH)
def test_fairseq_code_works_with_its_patch_and_fails_without(check, patched, unpatched):
    assert "ok" == patched[check]
    assert EXPECTED_WITHOUT_PATCH[check] in unpatched[check]


def test_every_patch_is_checked():
    for name in compat.PATCHES.keys() - {"dataclass_defaults"}:
        assert any(check.startswith(name) for check in EXPECTED_WITHOUT_PATCH), name


def test_fairseq_cannot_be_imported_without_the_dataclass_patch():
    process = python(
        "from fairseq_ray_plugin import compat\n"
        "compat.apply(skip={'dataclass_defaults'})\n"
        "import fairseq"
    )
    assert "mutable default" in process.stderr


def test_apply_imports_nothing_and_leaves_torch_and_numpy_alone():
    process = python(
        "import sys\n"
        "from fairseq_ray_plugin import compat\n"
        "compat.apply()\n"
        "assert not {'torch', 'numpy', 'fairseq', 'ray'} & sys.modules.keys()\n"
        "import numpy, torch\n"
        "load = torch.load\n"
        "import fairseq.checkpoint_utils\n"
        "assert load is torch.load and not hasattr(numpy, 'compat')\n"
        "assert 'ray' not in sys.modules\n"
    )
    assert process.returncode == 0, process.stderr[-3000:]


def test_a_users_configuration_may_have_a_fairseq_configuration_as_default():
    process = python(
        "from fairseq_ray_plugin import compat\n"
        "compat.apply()\n"
        "from dataclasses import dataclass\n"
        "from fairseq.dataclass import FairseqDataclass\n"
        "@dataclass\n"
        "class Inner(FairseqDataclass):\n"
        "    x: int = 1\n"
        "@dataclass\n"
        "class Outer(FairseqDataclass):\n"
        "    inner: Inner = Inner()\n"
        "assert Outer().inner.x == 1\n"
    )
    assert process.returncode == 0, process.stderr[-3000:]


def test_apply_names_the_patches_when_asked_to_skip_an_unknown_one():
    with pytest.raises(ValueError, match=r"no patch is called \['numpy'\]; there are .*numpy_nam"):
        compat.apply(skip={"numpy"})


if __name__ == "__main__":
    make_all_checks(sys.argv[1:])
