"""Stock fairseq 0.12 works on current Python, torch and numpy once ``apply()`` has been called.

fairseq 0.12.2 is the last release and dates from 2022. Each patch below is one function, says
which fairseq lines it repairs and has its own version gate. All but one change nothing outside
fairseq: they replace names in fairseq's own modules, right after those have been imported, by
whomever and whenever. The line numbers are those of fairseq 0.12.2.
"""

import sys
from collections.abc import Callable, Collection
from typing import Any

from fairseq_ray_plugin.compat import defects, encoder_copies, versions
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
    patches: dict[str, list[Callable[[Any], None]]] = {}
    for name, (patch, modules) in PATCHES.items():
        if name not in skip:
            for module in modules:
                patches.setdefault(module, []).append(patch)
    sys.meta_path.insert(0, PatchingFinder(patches))
    for module in patches.keys() & sys.modules.keys():
        for patch in patches[module]:
            patch(sys.modules[module])


PATCHES: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "dataclass_defaults": (versions.allow_dataclass_instances_as_defaults, ()),
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
    "user_dir": (defects.accept_this_package_as_user_dir, ("fairseq.utils",)),
}
