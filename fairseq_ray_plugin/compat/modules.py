"""Changing names in other people's modules, right after those have been imported."""

import functools
import importlib.abc
import importlib.machinery
import types
from collections.abc import Callable, Sequence
from typing import Any


class PatchingFinder(importlib.abc.MetaPathFinder):
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


class Overlay(types.ModuleType):
    """All of ``module``, with a few names replaced: for one importer, not for all."""

    def __init__(self, module: types.ModuleType, **replaced: Any) -> None:
        super().__init__(module.__name__, module.__doc__)
        self._overlaid = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._overlaid, name)


def patch(owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Replace a function by one that gets the original as its first argument."""
    original = getattr(owner, name)

    def replace(function: Callable[..., Any]) -> None:
        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        setattr(owner, name, patched)

    return replace
