"""What fairseq's own command line gets wrong before anything starts."""

import functools
import sys
from importlib.util import find_spec
from typing import Any


def let_denoising_define_its_options(module: Any) -> None:
    """``--task denoising`` and ``multilingual_denoising`` (BART's) can be trained.

    tasks/denoising.py:103 adds ``--max-source-positions``, which transformers have had since they
    are configured by dataclass: argparse refuses the second. Before that only the task had it, and
    it reads the value: its definition counts. fairseq main configures the task by dataclass, too.
    """
    task = module.DenoisingTask
    if "add_args" in vars(task):
        original = task.add_args

        @functools.wraps(original)
        def add_args(parser: Any) -> None:
            original(parser.add_argument_group(task.__name__, conflict_handler="resolve"))

        task.add_args = staticmethod(add_args)


def configure_what_has_no_dataclass(module: Any) -> None:
    """``--bpe bytes``, ``--bpe characters`` and users' own without a dataclass can be chosen.

    dataclass/utils.py:283 tells hydra to load a configuration of that name, which there is only
    for those that have registered a dataclass.
    """
    original = module.migrate_registry

    @functools.wraps(original)
    def migrate_registry(name: str, value: Any, registry: Any, *args: Any, **options: Any) -> None:
        if value is not None and value not in registry:
            from fairseq.dataclass import FairseqDataclass
            from hydra.core.config_store import ConfigStore

            node = FairseqDataclass(_name=value)
            ConfigStore.instance().store(name=value, group=name, node=node, provider="fairseq")
        original(name, value, registry, *args, **options)

    module.migrate_registry = migrate_registry


def read_lists_of_words(module: Any) -> None:
    """Options that are lists of words, such as ``--labels ltr``, can be given, or left out.

    dataclass/utils.py:24 takes only Python's notation, and not even the default that
    dataclass/utils.py:119 makes of such a list.
    """
    original = module.eval_str_list

    @functools.wraps(original)
    def eval_str_list(x: Any, x_type: type = float) -> Any:
        try:
            return original(x, x_type)
        except (SyntaxError, ValueError):
            if x_type is not str:
                raise
            return x.split(",")

    module.eval_str_list = eval_str_list


def train_in_bfloat16_without_a_tpu(module: Any) -> None:
    """``--bf16`` trains where there is no torch_xla.

    options.py:201 takes it for a wish for a TPU. Where torch_xla is installed that is left so.
    """
    original = module.parse_args_and_arch

    @functools.wraps(original)
    def parse_args_and_arch(parser: Any, input_args: Any = None, *args: Any, **options: Any) -> Any:
        result = original(parser, input_args, *args, **options)
        known = result[0] if options.get("parse_known") else result
        asked = "--tpu" in (sys.argv if input_args is None else input_args)
        if getattr(known, "tpu", False) and not asked and not find_spec("torch_xla"):
            known.tpu = False
        return result

    module.parse_args_and_arch = parse_args_and_arch
