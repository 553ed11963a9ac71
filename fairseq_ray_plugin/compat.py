"""Stock fairseq 0.12 works on current Python, torch and numpy once ``apply()`` has been called.

fairseq 0.12.2 is the last release and dates from 2022. Each patch below is one function, says
which fairseq lines it repairs and has its own version gate. All but one change nothing outside
fairseq: they replace names in fairseq's own modules, right after those have been imported, by
whomever and whenever. The line numbers are those of fairseq 0.12.2.
"""

import dataclasses
import functools
import importlib
import importlib.abc
import importlib.machinery
import inspect
import os
import sys
import types
from collections.abc import Callable, Collection, Sequence
from typing import Any

_OLD_PACKAGES = ("fairseq", "fairseq_cli", "hydra")


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
    if any(isinstance(finder, _PatchingFinder) for finder in sys.meta_path):
        return
    if "dataclass_defaults" not in skip:
        allow_dataclass_instances_as_defaults()
    patches: dict[str, list[Callable[[Any], None]]] = {}
    for name, (patch, modules) in PATCHES.items():
        if name not in skip:
            for module in modules:
                patches.setdefault(module, []).append(patch)
    sys.meta_path.insert(0, _PatchingFinder(patches))
    for module in patches.keys() & sys.modules.keys():
        for patch in patches[module]:
            patch(sys.modules[module])


class _PatchingFinder(importlib.abc.MetaPathFinder):
    """Modules named in ``patches`` are patched as soon as their own code has run."""

    def __init__(self, patches: dict[str, list[Callable[[Any], None]]]) -> None:
        self.patches = patches

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.patches:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run_module = spec.loader.exec_module

        def run_and_patch(module: types.ModuleType) -> None:
            run_module(module)
            for patch in self.patches.get(module.__name__, ()):
                patch(module)

        spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec


class _Overlay(types.ModuleType):
    """All of ``module``, with a few names replaced: for one importer, not for all."""

    def __init__(self, module: types.ModuleType, **replaced: Any) -> None:
        super().__init__(module.__name__, module.__doc__)
        self._overlaid = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._overlaid, name)


def _fairseq_older_than(major: int, minor: int) -> bool:
    version = sys.modules["fairseq"].__version__.split(".")
    return (int(version[0]), int(version[1])) < (major, minor)


# Patches that must be in place before fairseq is imported


def allow_dataclass_instances_as_defaults() -> None:
    """Dataclasses of fairseq and hydra may have another dataclass's instance as a default.

    Python 3.11, the oldest this package takes, refuses a default that it cannot hash ("mutable
    default ... use default_factory"): all those of fairseq/dataclass/configs.py:1014 and of hydra
    1.0's conf/__init__.py. A factory would not do, fairseq reads the defaults back
    (dataclass/initialize.py:22); so their classes are made hashable. So are classes derived from
    theirs: users' configurations do the same.
    """
    original = dataclasses.dataclass

    def is_old(cls: type) -> bool:
        return any(base.__module__.split(".")[0] in _OLD_PACKAGES for base in cls.__mro__)

    @functools.wraps(original)
    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        if cls is None:
            return functools.partial(dataclass, **options)
        if is_old(cls) and not options.get("frozen") and "__hash__" not in cls.__dict__:
            options.setdefault("unsafe_hash", True)
        return original(cls, **options)

    dataclasses.dataclass = dataclass


# Patches of one fairseq module each, which they get when it has just been imported


def load_checkpoints_whole(module: Any) -> None:
    """fairseq's own ``torch.load`` reads its checkpoints, which hold more than tensors.

    torch >= 2.6 reads only weights by default; fairseq keeps argparse.Namespace, DictConfig and
    numpy numbers beside them (checkpoint_utils.py:315 and 878; distributed/utils.py:770, where
    ranks > 0 get what rank 0 has loaded). Reading a whole checkpoint can run code from it: as
    ever with fairseq, load only checkpoints you trust. ``torch.load`` itself is left as it is.
    """
    torch = module.torch

    @functools.wraps(torch.load)
    def load(*args: Any, **options: Any) -> Any:
        options.setdefault("weights_only", False)
        return torch.load(*args, **options)

    module.torch = _Overlay(torch, load=load)


def restore_numpy_names(module: Any) -> None:
    """What numpy has dropped still exists in the fairseq modules that use it.

    ``np.compat.long``, until numpy 2.0: data/token_block_dataset.py:125 (masked_lm, break mode
    eos) and data/language_pair_dataset.py:292 (--num-batch-buckets). ``np.int`` and ``np.float``,
    until numpy 1.24: data/data_utils.py:488 (span masks), modules/dynamic_crf_layer.py:108.
    ``np.percentile(interpolation=)``, until numpy 2.4: data/data_utils.py:556 (batch buckets).
    """
    numpy = module.np

    @functools.wraps(numpy.percentile)
    def percentile(*args: Any, **options: Any) -> Any:
        if "interpolation" in options:
            options["method"] = options.pop("interpolation")
        return numpy.percentile(*args, **options)

    old_names = {"compat": types.SimpleNamespace(long=int), "int": int, "float": float}
    # The names are looked up in __dict__: old numpys warn when one asks for them by hasattr.
    missing = {name: old for name, old in old_names.items() if name not in numpy.__dict__}
    if "interpolation" not in inspect.signature(numpy.percentile).parameters:
        missing["percentile"] = percentile
    if missing:
        module.np = _Overlay(numpy, **missing)


def avoid_encoder_fast_path(module: Any) -> None:
    """Post-norm transformer encoders take the ordinary path at inference.

    modules/transformer_layer.py:319 calls torch's private fast path with the arguments of torch
    1.12; a later torch fails at the first padded batch ("Mask Type should be defined"). The next
    fairseq has dropped the fast path.
    """
    if not _fairseq_older_than(0, 13):
        return
    layer = module.TransformerEncoderLayerBase
    build = layer.__init__

    @functools.wraps(build)
    def build_without_fast_path(self: Any, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        self.can_use_fastpath = False

    layer.__init__ = build_without_fast_path


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
    package = __name__.rpartition(".")[0]
    folder = os.path.dirname(os.path.realpath(__file__))
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


PATCHES: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "dataclass_defaults": (allow_dataclass_instances_as_defaults, ()),
    "torch_load": (
        load_checkpoints_whole,
        ("fairseq.checkpoint_utils", "fairseq.distributed.utils"),
    ),
    "numpy_names": (
        restore_numpy_names,
        (
            "fairseq.data.data_utils",
            "fairseq.data.language_pair_dataset",
            "fairseq.data.token_block_dataset",
            "fairseq.modules.dynamic_crf_layer",
        ),
    ),
    "encoder_fast_path": (avoid_encoder_fast_path, ("fairseq.modules.transformer_layer",)),
    "ddp_on_cpu": (allow_ddp_on_cpu, ("fairseq.models.distributed_fairseq_model",)),
    "all_gather_list": (gather_lists_without_gpu, ("fairseq.distributed.utils",)),
    "user_dir": (accept_this_package_as_user_dir, ("fairseq.utils",)),
}
