"""What Python, torch, numpy and others have changed since fairseq 0.12.2."""

import dataclasses
import functools
import importlib
import inspect
import io
import pkgutil
import sys
import traceback
import types
import typing
from typing import Any

from fairseq_ray_plugin.compat.modules import Overlay

_OLD_PACKAGES = ("fairseq", "fairseq_cli", "hydra")


def allow_dataclass_instances_as_defaults() -> None:
    """Dataclasses of fairseq and hydra may have another dataclass's instance as a default.

    Python 3.11 and later refuse a default that it cannot hash ("mutable
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


def offer_typing_io() -> None:
    """antlr 4.8, which hydra 1.0 pins, can be imported.

    Its Lexer.py:12 asks for ``typing.io``, which Python 3.13 has dropped.
    """
    if sys.version_info >= (3, 13) and "typing.io" not in sys.modules:
        there = types.ModuleType("typing.io")
        there.TextIO = typing.TextIO  # type: ignore[attr-defined]
        sys.modules["typing.io"] = there


def find_plugins_of_hydra(module: Any) -> None:
    """hydra 1.0 finds its plugins, and fairseq's configuration with them.

    Its core/plugins.py:168 asks finders for ``find_module``, which Python 3.12 has dropped. hydra
    1.3 does so on old Pythons alone, and has both names.
    """
    asked = module.Plugins._scan_all_plugins.__code__.co_names
    if "find_module" not in asked or "find_spec" in asked:
        return

    class Finder:
        def find_module(self, name: str) -> Any:
            return self

        def load_module(self, name: str) -> Any:
            return importlib.import_module(name)

    def walk_packages(*args: Any, **options: Any) -> Any:
        for _, name, is_package in pkgutil.walk_packages(*args, **options):
            yield Finder(), name, is_package

    module.pkgutil = Overlay(pkgutil, walk_packages=walk_packages)


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

    module.torch = Overlay(torch, load=load)


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
        module.np = Overlay(numpy, **missing)


def show_errors_of_hydra_runs(module: Any) -> None:
    """An error in ``fairseq-hydra-train`` is shown, and not another one in its place.

    hydra 1.0's _internal/utils.py:267 passes ``etype=``, a name that Python 3.10 has dropped.
    Later hydras have no such name in their module.
    """
    if hasattr(module, "print_exception"):

        def print_exception(etype: Any, value: BaseException, tb: Any) -> None:
            traceback.print_exception(type(value), value, tb)

        module.print_exception = print_exception


def find_the_last_bit(module: Any) -> None:
    """Data sets with ``--dataset-impl huffman`` can be read.

    bitarray 3.0 has dropped ``util.rindex``: data/huffman/huffman_coder.py:46. (To write one,
    use fairseq's HuffmanCodeBuilder: fairseq-preprocess refuses, in every version.)
    """
    if not hasattr(module.util, "rindex"):
        module.util = Overlay(module.util, rindex=lambda bits, bit: bits.find(bit, right=True))


def score_open_files(module: Any) -> None:
    """sacrebleu scores open files, a sentence a line, and has ``compute_bleu``, as before 2.0.

    ``fairseq-score --sacrebleu`` passes files (fairseq_cli/score.py:60), and
    tasks/audio_finetuning.py:332 asks for the name. Both import sacrebleu where they use it, so
    it is sacrebleu itself that takes more than it did.
    """
    if hasattr(module, "compute_bleu"):
        return
    module.compute_bleu = module.BLEU.compute_bleu
    original = module.corpus_bleu

    def lines(text: Any) -> Any:
        return list(text) if isinstance(text, io.TextIOBase) else text

    @functools.wraps(original)
    def corpus_bleu(hypotheses: Any, references: Any, *args: Any, **options: Any) -> Any:
        return original(lines(hypotheses), [*map(lines, references)], *args, **options)

    module.corpus_bleu = corpus_bleu
