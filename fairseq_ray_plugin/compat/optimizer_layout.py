"""The state of an optimizer, with and without stock fairseq's copies of parameters.

An optimizer numbers its parameters in the order of the model's, in stock fairseq with the copies
among them. Behind ``--fp16`` all parameters are one flat tensor, and so are their averages; there
stock fairseq has zeros where the copies are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fairseq import utils

from fairseq_ray_plugin.compat.encoder_copies import ORIGINALS


@dataclasses.dataclass(frozen=True)
class Layout:
    """Stock fairseq's parameters that are trained, in its order.

    Args:
        sizes: the number of elements of each.
        kept: which of them are no copies.
    """

    sizes: tuple[int, ...]
    kept: tuple[int, ...]

    @classmethod
    def of(cls, *modules: torch.nn.Module) -> Layout:
        """That of an optimizer for all of the modules' parameters."""
        parameters = [*itertools.chain.from_iterable(map(_stock_order, modules))]
        return cls(
            tuple(size for size, _ in parameters),
            tuple(number for number, (_, is_copy) in enumerate(parameters) if not is_copy),
        )

    def with_copies(self, state: dict[str, Any]) -> dict[str, Any]:
        """Our state of an optimizer, as stock fairseq has it.

        There copies have a state, too, if their gradients are zeros and not None. It begins anew
        where it is missing, and nothing but the copies depends on it.
        """
        match state:
            case {"param_groups": [group], "state": values} if self._has_copies:
                if len(group["params"]) == len(self.kept):
                    numbers = dict(zip(group["params"], self.kept, strict=True))
                    values = {numbers[number]: value for number, value in values.items()}
                    group = {**group, "params": [*range(len(self.sizes))]}
                else:
                    values = _map_tensors(values, self._spread)
                return {**state, "param_groups": [group], "state": values}
        return state

    def without_copies(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state as stock fairseq has it, as we have it; one without copies stays as it is."""
        match state:
            case {"param_groups": [group], "state": values} if self._has_copies:
                numbers = self.kept_of(group["params"])
                values = {k: values[k] for k in numbers if k in values}
                values = _map_tensors(values, lambda flat: self.kept_of([flat])[0])
                group = {**group, "params": numbers}
                return {**state, "param_groups": [group], "state": values}
        return state

    def kept_of(self, parameters: list[Any]) -> list[Any]:
        """Those that are no copies: of something for each parameter, or of flat tensors."""
        if len(parameters) == len(self.sizes):
            return [parameters[number] for number in self.kept]
        return [self._cut(p) if torch.is_tensor(p) else p for p in parameters]

    @property
    def _has_copies(self) -> bool:
        return len(self.kept) < len(self.sizes)

    def _cut(self, flat: torch.Tensor) -> torch.Tensor:
        if flat.dim() != 1 or flat.numel() != sum(self.sizes):
            return flat
        pieces = flat.split(self.sizes)
        return torch.cat([pieces[number] for number in self.kept])

    def _spread(self, flat: torch.Tensor) -> Any:
        sizes = [self.sizes[number] for number in self.kept]
        if flat.dim() != 1 or flat.numel() != sum(sizes):
            return flat
        flat = utils.move_to_cpu(flat)
        pieces = [flat.new_zeros(1).expand(size) for size in self.sizes]
        for number, piece in zip(self.kept, flat.split(sizes), strict=True):
            pieces[number] = piece
        return _Pieces(pieces)


class _Pieces:
    """Pickled, it is the tensor that the pieces make up; zeros take no room in the file."""

    def __init__(self, pieces: list[torch.Tensor]) -> None:
        self.pieces = pieces

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.cat, (self.pieces,)


def _map_tensors(
    values: dict[Any, dict[str, Any]], change: Callable[[torch.Tensor], Any]
) -> dict[Any, dict[str, Any]]:
    return {
        number: {k: change(v) if torch.is_tensor(v) else v for k, v in value.items()}
        for number, value in values.items()
    }


def _stock_order(module: torch.nn.Module) -> Iterator[tuple[int, bool]]:
    """Size of each parameter that is trained, and whether it is a copy."""
    seen: set[torch.nn.Parameter] = set()
    for part in module.modules():
        for name, size in vars(part).get("removed_copies", {}).items():
            if part.get_parameter(ORIGINALS[name]).requires_grad:
                yield size, True
        for parameter in part.parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield parameter.numel(), False
