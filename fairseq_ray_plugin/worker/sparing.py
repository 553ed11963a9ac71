"""torch's compiler is imported by who compiles, and not by every optimizer and DDP.

It is half of what there is to import: a second, and 70 MB for each server. torch imports it to tell
it what not to compile, or to ask whether it was told something, which nobody can have done before.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

from fairseq_ray_plugin.compat import modules

DYNAMO = "torch._dynamo"


def spare_the_compiler() -> None:
    """Importing torch from now on, and training with it, does not import its compiler unasked."""
    patches: dict[str, list[Callable[[Any], None]]] = {
        "torch._compile": [_hide_from_it_once_it_is_there],
        "torch.optim.optimizer": [_tell_it_of_steps_once_it_is_there],
        "torch.nn.parallel.distributed": [_ask_it_once_it_is_there],
    }
    sys.meta_path.insert(0, modules.PatchingFinder(patches))


def _hide_from_it_once_it_is_there(module: Any) -> None:
    """torch/_compile.py: the decorator imports the compiler when what it hides is first called."""
    original = module._disable_dynamo

    @functools.wraps(original)
    def disable(fn: Any = None, recursive: bool = True) -> Any:
        if fn is None:
            return functools.partial(disable, recursive=recursive)
        hidden = original(fn, recursive)

        @functools.wraps(fn)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return (hidden if DYNAMO in sys.modules else fn)(*args, **kwargs)

        return inner

    module._disable_dynamo = disable


def _tell_it_of_steps_once_it_is_there(module: Any) -> None:
    """torch/optim/optimizer.py: a step begins and ends without the compiler's graphs."""
    original = module._use_grad_for_differentiable

    @functools.wraps(original)
    def use_grad(step: Any) -> Any:
        told = original(step)

        @functools.wraps(step)
        def inner(self: Any, *args: Any, **kwargs: Any) -> Any:
            if DYNAMO in sys.modules:
                return told(self, *args, **kwargs)
            with module.torch.set_grad_enabled(self.defaults["differentiable"]):
                return step(self, *args, **kwargs)

        return inner

    module._use_grad_for_differentiable = use_grad


def _ask_it_once_it_is_there(module: Any) -> None:
    """torch/nn/parallel/distributed.py asks it how it treats DDP."""
    module.torch = _Torch(module.torch)


class _Torch(modules.Overlay):
    def __getattr__(self, name: str) -> Any:
        if name == "_dynamo" and DYNAMO not in sys.modules:
            return _NOT_THERE
        return super().__getattr__(name)


class _NotThere:
    """Its default answer; whoever asks it anything else gets the compiler itself."""

    utils = types.SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")

    def __getattr__(self, name: str) -> Any:
        import torch._dynamo

        return getattr(torch._dynamo, name)


_NOT_THERE = _NotThere()
