"""Training imports torch's compiler only where something is compiled, and then it is as ever."""

import subprocess
import sys

BEGIN = """
import sys
from fairseq_ray_plugin import compat
from fairseq_ray_plugin.worker import sparing
compat.apply()
sparing.spare_the_compiler()
import torch
"""


def run(code: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", BEGIN + code], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_no_optimizer_imports_the_compiler():
    tried = run("""
import argparse
from fairseq import optim
tried = []
for name, kind in optim.OPTIMIZER_REGISTRY.items():
    if dataclass := getattr(kind, "__dataclass", None):
        options = dataclass()
        options.adam_betas = str(getattr(options, "adam_betas", ""))
    else:
        parser = argparse.ArgumentParser()
        kind.add_args(parser)
        options = parser.parse_args([])
    options.lr, options.cpu, options.tpu = [0.1], True, False
    weight = torch.nn.Parameter(torch.ones(3))
    try:
        optimizer = kind(options, [weight])
    except Exception:  # what it needs is not installed
        continue
    for _ in range(2):
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()
    state = optimizer.state_dict()
    optimizer.optimizer.load_state_dict(state)
    assert weight.requires_grad and (weight != 1).all(), name
    assert "torch._dynamo" not in sys.modules, name
    tried.append(name)
print(*tried)
""").split()
    assert {"adam", "sgd", "adagrad", "adadelta", "adamax", "adafactor", "nag"} <= set(tried)


def test_ddp_does_not_import_it():
    run("""
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
model(torch.ones(1, 2)).sum().backward()
assert model.module.weight.grad is not None
dist.destroy_process_group()
assert "torch._dynamo" not in sys.modules
""")


def test_what_compiles_does_so_without_what_is_hidden_from_it():
    run("""
@torch._disable_dynamo
def hidden():
    return torch.compiler.is_compiling()

@torch._disable_dynamo(recursive=False)
def itself_hidden():
    return torch.compiler.is_compiling()

def seen():
    return torch.compiler.is_compiling()

def ask():
    return hidden(), itself_hidden(), seen()

assert (False, False, False) == ask() and "torch._dynamo" not in sys.modules
assert (False, False, True) == torch.compile(ask, backend="eager")()
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.SGD([weight], lr=1.0)

@torch.compile(backend="eager")
def update():
    optimizer.zero_grad()
    weight.sum().backward()
    optimizer.step()
    return weight.sum()

assert 0 == update().item()
model = torch.nn.parallel.distributed
assert "ddp_optimizer" == model.torch._dynamo.utils.get_optimize_ddp_mode()
model.torch._dynamo.config.optimize_ddp = "python_reducer"
assert "python_reducer" == model.torch._dynamo.utils.get_optimize_ddp_mode()
""")
