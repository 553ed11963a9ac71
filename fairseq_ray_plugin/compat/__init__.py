"""fairseq works on current Python, torch and numpy once ``apply()`` has been called.

fairseq 0.12.2 is the last release and dates from 2022; its repository and forks went on. Each
patch below is one function, says which fairseq lines it repairs, and looks whether they are still
so: versions do not tell. Most change nothing outside fairseq: they replace names in fairseq's own
modules, right after those have been imported, by whomever and whenever. The line numbers are
those of fairseq 0.12.2.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Collection
from typing import Any

from fairseq_ray_plugin.compat import arguments, defects, encoder_copies, versions
from fairseq_ray_plugin.compat.modules import PatchingFinder


def apply(skip: Collection[str] = ()) -> None:
    """Importing fairseq works, and does so in every module imported from here on.

    Call it before fairseq is imported. It imports neither fairseq nor torch, may be called any
    number of times, and must be called in every process that imports fairseq (forked ones inherit
    it).

    Args:
        skip: names of patches (keys of ``PATCHES``) to leave out, for tests and for bisecting.
    """
    unknown = set(skip) - set(PATCHES)
    if unknown:
        raise ValueError(f"skip: no patch is called {sorted(unknown)}; there are {list(PATCHES)}")
    if any(isinstance(finder, PatchingFinder) for finder in sys.meta_path):
        return
    if "dataclass_defaults" not in skip:
        versions.allow_dataclass_instances_as_defaults()
    if "typing_io" not in skip:
        versions.offer_typing_io()
    patches: dict[str, list[Callable[[Any], None]]] = {}
    for name, (patch, modules) in PATCHES.items():
        if name not in skip:
            for module in modules:
                patches.setdefault(module, []).append(patch)
    sys.meta_path.insert(0, PatchingFinder(patches))
    for module in patches.keys() & sys.modules.keys():
        for patch in patches[module]:
            patch(sys.modules[module])


class _Apply:
    """Once it has been unpickled, ``apply`` has been called."""

    def __reduce__(self) -> tuple[Any, ...]:
        folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        code = "import sys; sys.path.append({!r}); import {name}; {name}.apply()"
        return exec, (code.format(folder, name=__name__),)


def apply_in_new_processes(module: Any) -> None:
    """Processes that multiprocessing starts afresh (spawn, forkserver) can import fairseq, too.

    What they are sent first is unpickled before they import anything of the program.
    """
    original = module.get_preparation_data

    @functools.wraps(original)
    def get_preparation_data(name: str) -> dict[str, Any]:
        return {**original(name), "compat": _Apply()}

    module.get_preparation_data = get_preparation_data


def require_fairseq() -> None:
    """The program ends in one line where there is no fairseq."""
    if importlib.util.find_spec("fairseq") is None:
        command = os.path.basename(sys.argv[0])
        print(
            f"{command}: error: no fairseq is installed here: install your own, "
            "or stock fairseq with uv pip install '.[fairseq]' in this package's checkout",
            file=sys.stderr,
        )
        sys.exit(2)


PATCHES: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "dataclass_defaults": (versions.allow_dataclass_instances_as_defaults, ()),
    "typing_io": (versions.offer_typing_io, ()),
    "hydra_plugins": (versions.find_plugins_of_hydra, ("hydra.core.plugins",)),
    "new_processes": (apply_in_new_processes, ("multiprocessing.spawn",)),
    "torch_load": (
        versions.load_checkpoints_whole,
        ("fairseq.checkpoint_utils", "fairseq.distributed.utils"),
    ),
    "numpy_names": (
        versions.restore_numpy_names,
        (
            "fairseq.data.data_utils",
            "fairseq.data.language_pair_dataset",
            "fairseq.data.token_block_dataset",
            "fairseq.modules.dynamic_crf_layer",
        ),
    ),
    "encoder_copies": (
        encoder_copies.remove,
        ("fairseq.modules.transformer_layer", "fairseq.trainer"),
    ),
    "ddp_on_cpu": (defects.allow_ddp_on_cpu, ("fairseq.models.distributed_fairseq_model",)),
    "all_gather_list": (defects.gather_lists_without_gpu, ("fairseq.distributed.utils",)),
    "hydra_errors": (versions.show_errors_of_hydra_runs, ("hydra._internal.utils",)),
    "huffman": (versions.find_the_last_bit, ("fairseq.data.huffman.huffman_coder",)),
    "sacrebleu": (versions.score_open_files, ("sacrebleu",)),
    "denoising": (arguments.let_denoising_define_its_options, ("fairseq.tasks.denoising",)),
    "legacy_masked_lm": (
        defects.load_data_of_legacy_masked_lm,
        ("fairseq.tasks.legacy_masked_lm",),
    ),
    "bart_translation": (
        defects.keep_arguments_of_bart_translation,
        ("fairseq.tasks.translation_from_pretrained_bart",),
    ),
    "without_dataclass": (arguments.configure_what_has_no_dataclass, ("fairseq.dataclass.utils",)),
    "lists_of_words": (arguments.read_lists_of_words, ("fairseq.dataclass.utils",)),
    "span_masks": (defects.draw_masks_by_the_seed_of_the_run, ("fairseq.data.data_utils",)),
    "torchrun": (defects.let_torchrun_train_on_cpu, ("fairseq.distributed.utils",)),
    "bf16": (arguments.train_in_bfloat16_without_a_tpu, ("fairseq.options",)),
    "fp16_on_cpu": (defects.flatten_16_bit_parameters_on_cpu, ("fairseq.optim.fp16_optimizer",)),
    "spectral_norm": (
        defects.load_heads_with_spectral_norm,
        ("fairseq.models.roberta.model", "fairseq.models.bart.model"),
    ),
    "loaders": (defects.leave_the_parents_loaders_alone, ("torch.utils.data.dataloader",)),
    "libnat": (defects.refuse_training_without_libnat, ("fairseq_cli.train",)),
    "user_dir": (defects.accept_this_package_as_user_dir, ("fairseq.utils",)),
}
