"""Encoder layers have their parameters once, as before fairseq 0.12 and as in fairseq's main.

fairseq 0.12.2 (modules/transformer_layer.py:75) keeps copies of them for a private function of
torch that is faster at inference. The copies are parameters, but no loss depends on them:
``--ddp-backend pytorch_ddp``, the default, fails in the second update, and the layers, their
gradients and their optimizer's state are twice as large. That function, as it is called there, is
one of torch 1.12: a later torch fails at the first padded batch ("Mask Type should be defined").

Nothing that is trained depends on the copies, so it is the same training without them. Files stay
stock fairseq's: its models make the copies as they load, and see ``optimizer_layout``.
"""

import functools
from typing import Any

ORIGINALS = {
    "in_proj_weight": "self_attn.q_proj.weight",  # and k_proj, v_proj
    "in_proj_bias": "self_attn.q_proj.bias",
    "out_proj_weight": "self_attn.out_proj.weight",
    "out_proj_bias": "self_attn.out_proj.bias",
    "fc1_weight": "fc1.weight",
    "fc1_bias": "fc1.bias",
    "fc2_weight": "fc2.weight",
    "fc2_bias": "fc2.bias",
}
"""What an encoder layer's copies are called, and of which of its parameters they are."""


def remove(module: Any) -> None:
    """Neither layers nor optimizers know of the copies; without them, no fast path is taken."""
    if hasattr(module, "Trainer"):
        _keep_stock_layout(module.Trainer)
    else:
        _build_without_copies(module.TransformerEncoderLayerBase)


def _build_without_copies(layer: Any) -> None:
    build, load = layer.__init__, layer._load_from_state_dict

    @functools.wraps(build)
    def build_without_copies(self: Any, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        copies = {name: self._parameters[name] for name in ORIGINALS if name in self._parameters}
        for name, copy in copies.items():
            delattr(self, name)
            setattr(self, name, copy.data.new_empty(0))  # TorchScript compiles the fast path, too
        self.removed_copies = {name: copy.numel() for name, copy in copies.items()}
        self.can_use_fastpath = False

    @functools.wraps(load)
    def load_without_copies(self: Any, state_dict: Any, prefix: str, *args: Any) -> None:
        # in place of the layer's own method, which makes the copies
        for name in self.removed_copies:
            state_dict.pop(prefix + name, None)
        super(layer, self)._load_from_state_dict(state_dict, prefix, *args)

    layer.__init__, layer._load_from_state_dict = build_without_copies, load_without_copies


def _keep_stock_layout(trainer: Any) -> None:
    """An optimizer saves its state as stock fairseq does, and loads what either has saved."""
    build = trainer._build_optimizer

    @functools.wraps(build)
    def build_optimizer(self: Any) -> None:
        from fairseq_ray_plugin.compat.optimizer_layout import Layout

        build(self)
        optimizer, layout = self._optimizer, Layout.of(self.model, self.criterion)
        save, load = optimizer.state_dict, optimizer.load_state_dict
        optimizer.layout = layout
        optimizer.state_dict = lambda: layout.with_copies(save())
        optimizer.load_state_dict = lambda state, *args: load(layout.without_copies(state), *args)

    trainer._build_optimizer = build_optimizer
