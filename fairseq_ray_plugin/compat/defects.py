"""What fairseq 0.12.2 itself gets wrong on the machines of today."""

import functools
import importlib
import importlib.util
import os
import sys
from typing import Any

from fairseq_ray_plugin.compat.modules import Overlay


def allow_ddp_on_cpu(module: Any) -> None:
    """``--ddp-backend pytorch_ddp`` works with ``--cpu``.

    models/distributed_fairseq_model.py:58 always passes a GPU's index; torch refuses that for a
    module on the CPU.
    """
    original = module.DistributedDataParallel

    def distributed_data_parallel(module: Any, **options: Any) -> Any:
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            options.update(device_ids=None, output_device=None)
        return original(module=module, **options)

    module.DistributedDataParallel = distributed_data_parallel


def gather_lists_without_gpu(module: Any) -> None:
    """``all_gather_list`` works with gloo.

    distributed/utils.py:585 keeps its buffers on a GPU whatever the back end. Criterions whose
    logging outputs cannot be summed need it (trainer.py:1399), and fairseq-validate.
    """
    torch = module.torch
    original = module.all_gather_list

    @functools.wraps(original)
    def all_gather_list(data: Any, group: Any = None, max_size: int = 16384) -> list[Any]:
        if group is None:
            group = module.get_global_group()
        if not module.use_xla() and torch.distributed.get_backend(group) == "gloo":
            # The original takes the buffers it finds on the function, if they are large enough.
            size = max_size * module.get_world_size(group)
            all_gather_list._buffer = torch.empty(size, dtype=torch.uint8)
            all_gather_list._cpu_buffer = torch.empty(max_size, dtype=torch.uint8)
        return original(data, group, max_size)

    module.all_gather_list = all_gather_list


def accept_this_package_as_user_dir(module: Any) -> None:
    """``--user-dir`` may name this package: by any path, or by ``fairseq_ray_plugin`` alone.

    utils.py:464 imports the folder under its base name unless a module of that name is there
    already, and compares paths as text: a link to the folder would be "not globally unique". To
    call ``apply`` the package has been imported, probably before fairseq was there to register
    with; so its ``__init__`` runs a second time, to do what it does as a ``--user-dir``.
    """
    original = module.import_user_module
    package = __name__.partition(".")[0]
    folder = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    done = False

    @functools.wraps(original)
    def import_user_module(args: Any) -> None:
        nonlocal done
        user_dir = getattr(args, "user_dir", None)
        if user_dir is None or (user_dir != package and os.path.realpath(user_dir) != folder):
            original(args)
        elif not done:
            done = True
            importlib.reload(sys.modules[package])

    module.import_user_module = import_user_module


def draw_masks_by_the_seed_of_the_run(module: Any) -> None:
    """Masks of spans depend on the run's seed, and can be of varying length, with fairseq main.

    Its data/data_utils.py:459 has a generator of its own, seeded by the system where the caller
    has no seed for it (wav2vec 2.0, HuBERT): no run would be like another. And lines 489 and 511
    call a name that such generators do not have. In 0.12.2 all is drawn from ``np.random``.
    """
    if "default_rng" not in module.compute_mask_indices.__code__.co_names:
        return
    random = module.np.random

    class Generator(random.Generator):  # type: ignore[name-defined, misc]
        randint = random.Generator.integers

    def default_rng(seed: int | None = None) -> Any:
        seed = random.randint(2**32) if seed is None else seed
        return Generator(random.default_rng(seed).bit_generator)

    module.np = Overlay(module.np, random=Overlay(random, default_rng=default_rng))


def let_torchrun_train_on_cpu(module: Any) -> None:
    """torchrun's processes train together on a machine without a GPU, with fairseq main.

    Its distributed/utils.py:54 takes the default, one process for each GPU but at least one, for
    the world size, so that each process trains alone; and line 91 divides by the number of GPUs.
    """
    original = module.infer_init_method

    @functools.wraps(original)
    def infer_init_method(cfg: Any, force_distributed: bool = False) -> None:
        names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
        by_torchrun = all(name in os.environ for name in names)
        asked = cfg.distributed_init_method is not None or cfg.tpu
        if by_torchrun and not asked and not module.torch.cuda.is_available():
            cfg.distributed_init_method = "env://"
            cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
            cfg.distributed_rank = int(os.environ["RANK"])
            cfg.distributed_no_spawn = True
        else:
            original(cfg, force_distributed)

    module.infer_init_method = infer_init_method


def load_data_of_legacy_masked_lm(module: Any) -> None:
    """``--task legacy_masked_lm`` can be trained.

    tasks/legacy_masked_lm.py:85 does not take all that trainer.py:688 tells a task of its data.
    """
    task = module.LegacyMaskedLMTask
    original = task.load_dataset

    @functools.wraps(original)
    def load_dataset(
        self: Any, split: str, epoch: int = 1, combine: bool = False, **more: Any
    ) -> None:
        original(self, split, epoch, combine)

    task.load_dataset = load_dataset


def keep_arguments_of_bart_translation(module: Any) -> None:
    """``--task translation_from_pretrained_bart`` loads its data.

    tasks/translation_from_pretrained_bart.py:66 reads ``self.args``, which TranslationTask has
    called ``cfg`` since 0.10.
    """
    task = module.TranslationFromPretrainedBARTTask
    if not hasattr(task, "args"):
        task.args = property(lambda self: self.cfg)


def flatten_16_bit_parameters_on_cpu(module: Any) -> None:
    """``--fp16`` trains with ``--cpu`` without ``--fp16-no-flatten-grads``.

    optim/fp16_optimizer.py:38 files the 32-bit parameters under the current GPU: without a GPU
    that fails, and with one the gradients, filed under the CPU (line 117), never get there.
    """
    mixin = module._FP16OptimizerMixin
    original = mixin.build_fp32_params.__func__
    torch = module.torch

    @functools.wraps(original)
    def build_fp32_params(cls: type, args: Any, params: Any, flatten: bool = True) -> Any:
        params = list(params)
        if not flatten or any(param.device.type != "cpu" for param in params):
            return original(cls, args, params, flatten)
        flat = torch.nn.Parameter(torch.cat([param.data.float().view(-1) for param in params]))
        flat.grad = torch.zeros_like(flat)
        return {None: flat}

    mixin.build_fp32_params = classmethod(build_fp32_params)


def load_heads_with_spectral_norm(module: Any) -> None:
    """A checkpoint with ``--spectral-norm-classification-head`` can be loaded.

    models/roberta/model.py:414 and models/bart/model.py:230 read a head's size from
    ``out_proj.weight``, which spectral normalization keeps as ``out_proj.weight_orig``.
    """
    model = getattr(module, "RobertaModel", None) or module.BARTModel
    original = model.upgrade_state_dict_named

    @functools.wraps(original)
    def upgrade_state_dict_named(self: Any, state_dict: dict[str, Any], name: str) -> None:
        suffix = ".out_proj.weight_orig"
        weights = {k: v for k, v in state_dict.items() if k.endswith(suffix)}
        lent = {k.removesuffix("_orig"): v for k, v in weights.items()}
        state_dict.update(lent)
        original(self, state_dict, name)
        for key in lent:
            state_dict.pop(key, None)

    model.upgrade_state_dict_named = upgrade_state_dict_named


def leave_the_parents_loaders_alone(module: Any) -> None:
    """No "can only test a child process" from loader processes.

    torch's utils/data/dataloader.py: whoever is forked while an iterator lives (fairseq's loaders
    of an epoch, beside those of validation) has a copy of it, which at its end asks after processes
    that are not its children; or hangs, for a lock that a thread of the parent's held.
    """
    iterator = module._MultiProcessingDataLoaderIter
    original = iterator.__del__

    @functools.wraps(original)
    def __del__(self: Any) -> None:
        if all(worker._parent_pid == os.getpid() for worker in getattr(self, "_workers", ())):
            original(self)

    iterator.__del__ = __del__


def check_libnat(cfg: Any) -> None:
    """Raises ValueError where `cfg` trains a model that needs fairseq's libnat, and it is missing.

    Without it the first update fails (models/nat/levenshtein_utils.py:23 and
    insertion_transformer.py:57). PyPI's fairseq 0.12.2 lacks even its source.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY
    from fairseq.models.nat import LevenshteinTransformerModel

    arch = getattr(cfg.model, "_name", None) or getattr(cfg.model, "arch", None)
    model = ARCH_MODEL_REGISTRY.get(arch, object)
    libnat = (importlib.util.find_spec(f"fairseq.{name}") for name in ("libnat", "libnat_cuda"))
    if issubclass(model, LevenshteinTransformerModel) and not any(libnat):
        raise ValueError(
            f"--arch {arch} needs fairseq's libnat to train, which fairseq 0.12.2 as PyPI has "
            "it comes without: install fairseq from its repository in its place, with pip's "
            "--no-build-isolation, or fairseq-fixed"
        )


def refuse_training_without_libnat(module: Any) -> None:
    """Training that needs a missing libnat ends in one line, before it begins."""
    original = module.main

    @functools.wraps(original)
    def main(cfg: Any) -> None:
        try:
            check_libnat(cfg)
        except ValueError as error:
            sys.exit(f"{os.path.basename(sys.argv[0])}: error: {error}")
        original(cfg)

    module.main = main
