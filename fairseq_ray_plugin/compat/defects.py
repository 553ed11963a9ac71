"""What fairseq 0.12.2 itself gets wrong on the machines of today."""

import functools
import importlib
import os
import sys
from typing import Any


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
