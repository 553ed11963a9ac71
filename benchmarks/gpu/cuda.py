"""Checks of CUDA and NCCL by themselves: each is run in a process of its own, and returns figures.

The numbers are those of docs/gpu.md. What a check expects it asserts.
"""

import contextlib
import datetime
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import traceback

import torch
import torch.distributed as dist

DEAD_S = 150
"""So long a kernel stands for a collective whose other end is dead."""


def occupy(seconds: float) -> None:
    """The GPU's default stream is busy for at least so long."""
    torch.cuda._sleep(1000)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    torch.cuda._sleep(10**8)
    torch.cuda.synchronize()
    torch.cuda._sleep(int(seconds / (time.perf_counter() - begin) * 10**8))


def watchdog() -> dict:
    """1: by default NCCL's watchdog ends a rank whose collective hangs; with our settings not."""
    begin = time.monotonic()
    children = {
        name: subprocess.Popen([sys.executable, "-c", _HANGS, name], stderr=subprocess.DEVNULL)
        for name in ("default", "settings")
    }
    ended: dict[str, float] = {}
    while time.monotonic() - begin < 75 and len(ended) < len(children):
        for name, child in children.items():
            if name not in ended and child.poll() is not None:
                ended[name] = round(time.monotonic() - begin, 1)
        time.sleep(0.2)
    codes = {name: child.poll() for name, child in children.items()}
    for child in children.values():
        child.kill()
        child.wait()
    assert "settings" not in ended, f"it ended after {ended['settings']} s: {codes['settings']}"
    return {"default_ended_after_s": ended.get("default"), "default_code": codes["default"]}


_HANGS = """
import datetime, os, sys
sys.path[:0] = [os.getcwd(), "benchmarks"]
from fairseq_ray_plugin import compat; compat.apply()
from fairseq_ray_plugin.training import collectives
if sys.argv[1] == "settings":
    os.environ.update(collectives.GPU_SETTINGS)
from gpu import cuda
cuda.join_alone(5)
cuda.occupy(cuda.DEAD_S)
import torch, torch.distributed as dist
x = torch.zeros(1, device="cuda")
dist.all_reduce(x)
x.item()
"""


def join_alone(limit_s: float) -> None:
    """A process group of NCCL of this process alone, whose collectives have so long."""
    dist.init_process_group(
        "nccl",
        store=dist.HashStore(),
        rank=0,
        world_size=1,
        timeout=datetime.timedelta(seconds=limit_s),
        device_id=torch.device("cuda", 0),
    )
    dist.all_reduce(torch.zeros(1, device="cuda"))
    torch.cuda.synchronize()


def _while_blocked(work, queued: int, limit_s: float) -> tuple[float | None, str]:
    """Seconds that a thread takes for it while another is stuck; None: it is stuck, too, there.

    All kernels have been loaded before, as those of training are after its first update: to load
    one can wait for what runs.
    """
    took: list[float] = []

    def timed() -> None:
        begin = time.monotonic()
        work()
        took.append(round(time.monotonic() - begin, 2))

    def stuck() -> None:
        one = torch.zeros(1, device="cuda")
        for _ in range(queued):
            one += 1
        one.item()

    stuck()
    work()
    occupy(DEAD_S)
    threading.Thread(target=stuck, daemon=True).start()
    time.sleep(2)
    thread = threading.Thread(target=timed, daemon=True)
    thread.start()
    thread.join(limit_s)
    frame = sys._current_frames().get(thread.ident or 0)
    return (took[0] if took else None), "".join(traceback.format_stack(frame)[-3:])


def _to_host(state: list[torch.Tensor]):
    from fairseq_ray_plugin.training.to_host import ToHost

    to_host = ToHost()
    to_host.mark()

    def copy() -> None:
        with to_host.reading():
            copied = to_host.copy(state, {})
        assert all(t.device.type == "cpu" for t in copied)

    return copy


def copy_behind(queued: str = "") -> dict:
    """2: the state comes to the host while a kernel never ends, few launches queued, and many."""
    if not queued:
        found = {count: _child_check("copy_behind", count) for count in ("10", "2000", "6000")}
        assert found["10"]["took_s"] and found["2000"]["took_s"], found
        return found
    from fairseq_ray_plugin.training import collectives

    os.environ.update(collectives.GPU_SETTINGS)
    state = [torch.ones(1 << 26, device="cuda") for _ in range(8)]
    took, where = _while_blocked(_to_host(state), queued=int(queued), limit_s=15)
    return {"bytes": sum(t.nbytes for t in state), "took_s": took, "waits": where}


def copy_when_full(by: str = "") -> dict:
    """3: so it does with less than 100 MB free, of 16 bits; fairseq's own way may not."""
    if not by:
        return {way: _child_check("copy_when_full", way) for way in ("ours", "fairseq")}
    from fairseq import utils

    state = [torch.ones(1 << 27, device="cuda", dtype=torch.float16) for _ in range(4)]
    copy = _to_host(state) if by == "ours" else functools.partial(utils.move_to_cpu, state)
    free, _ = torch.cuda.mem_get_info()
    full = torch.empty(max(0, free - (90 << 20)), dtype=torch.uint8, device="cuda")
    try:
        took, where = _while_blocked(copy, queued=10, limit_s=15)
    except torch.cuda.OutOfMemoryError:
        took, where = None, "out of memory"
    assert took is not None or by == "fairseq", f"it waits for the kernel: {where}"
    return {"took_s": took, "waits": where, "filled_bytes": full.nbytes}


def side_streams() -> dict:
    """4: what 40 copies of the state reserve on the GPU: nothing by our way."""
    state = [torch.ones(1 << 24, device="cuda", dtype=torch.float16)]
    before = torch.cuda.memory_reserved()
    for _ in range(40):
        _to_host(state)()
    ours = torch.cuda.memory_reserved() - before
    for _ in range(40):
        with torch.cuda.stream(torch.cuda.Stream()):
            [tensor.float().cpu() for tensor in state]
    assert ours == 0
    return {"ours": ours, "a_stream_each": torch.cuda.memory_reserved() - before}


def boundary_is_complete() -> dict:
    """5: how often the default stream is still busy at a boundary, by precision."""
    import trainers

    from fairseq_ray_plugin.training.boundary import Boundary, StateKeeper

    kinds = {**trainers.PRECISIONS, "ema": {"with_ema": True}}
    busy = {}
    for name, options in kinds.items():
        trainer, keeper = trainers.make(trainers.Line, "cuda", **options), StateKeeper(0, 1)
        keeper.attach(trainer, Boundary(0, {}))
        busy[name] = 0
        for _ in range(20):
            trainers.update(trainer)
            busy[name] += not torch.cuda.default_stream().query()
            keeper.record(Boundary(trainer.get_num_updates(), {}))
    return {"busy_of_20": busy}


def memory_comes_back() -> dict:
    """6: seconds until a killed rank's memory is free, with its loader process and without."""
    return {how: _time_to_free(how) for how in ("kill", "killpg")}


def _time_to_free(how: str) -> float | None:
    free, total = torch.cuda.mem_get_info()
    size = int(free * 0.75)
    rank = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(size)], stdout=subprocess.PIPE, start_new_session=True
    )
    assert rank.stdout is not None and rank.stdout.readline()
    begin = time.monotonic()
    (os.killpg if how == "killpg" else os.kill)(rank.pid, signal.SIGKILL)
    took = None
    while took is None and time.monotonic() - begin < 20:
        if torch.cuda.mem_get_info()[0] > free - (256 << 20):
            took = round(time.monotonic() - begin, 2)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(rank.pid, signal.SIGKILL)
    rank.wait()
    return took


_HOLDS = """
import os, signal, sys, time, torch
x = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda")
if os.fork() == 0:  # a loader process that is at a batch
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(30)
    os._exit(0)
print("here", flush=True)
time.sleep(60)
"""


def _child_check(name: str, *arguments: str) -> dict:
    """A check in a process of its own."""
    from gpu_checks import run_child

    return run_child(name, *arguments)


CHECKS = {
    check.__name__: check
    for check in (
        *(watchdog, copy_behind, copy_when_full, side_streams, boundary_is_complete),
        *(memory_comes_back,),
    )
}
