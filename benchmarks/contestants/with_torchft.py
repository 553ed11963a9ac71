"""A replica as torchft has them: its Manager around fairseq's model, task and criterion.

Used as torchft's DDP and Optimizer use it, and run by torchrun as in its example, one process a
replica group. (Its DDP itself does not survive a peer over gloo: 0.2.0 asserts that there is a
future, where gloo has raised.) Each replica adds a part of the batch of its own, so that an update
is smaller while there are fewer of them; one in which a replica is lost is dropped. Arguments are
fairseq-train's, plus

    --fix-batch-size N   samples of an update while all replicas are there
    --replicas N         how many that is

`TORCHFT_LIGHTHOUSE` says where the lighthouse is, and `REPLICA` which replica this is.
"""

import math
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests"), str(Path(__file__).parents[2])]

from fairseq_ray_plugin import compat  # noqa: E402

compat.apply()

import recorder  # noqa: E402
import torch  # noqa: E402
from fairseq import options, tasks, utils  # noqa: E402
from fairseq.dataclass.utils import convert_namespace_to_omegaconf  # noqa: E402
from torchft import Manager, ProcessGroupGloo  # noqa: E402

LIMIT = timedelta(seconds=30)


def main():
    parser = options.get_training_parser()
    parser.add_argument("--fix-batch-size", type=int, required=True)
    parser.add_argument("--replicas", type=int, required=True)
    args = options.parse_args_and_arch(parser)
    cfg = convert_namespace_to_omegaconf(args)
    utils.set_torch_seed(cfg.common.seed)
    task = tasks.setup_task(cfg.task)
    model, criterion = task.build_model(cfg.model), task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)

    def load(state):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    def state():
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    manager = Manager(
        pg=ProcessGroupGloo(timeout=LIMIT),
        load_state_dict=load,
        state_dict=state,
        min_replica_size=1,
        timeout=LIMIT,
        replica_id=f"replica_{os.environ['REPLICA']}",
    )
    checkpoint = Path(args.save_dir) / "torchft.pt"
    checkpoint.parent.mkdir(exist_ok=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        load(saved["user"])
        manager.load_state_dict(saved["torchft"])
    batches = batches_of(task, model, cfg, args.replicas)
    per_update = args.fix_batch_size // args.batch_size // args.replicas
    every = args.save_interval_updates
    while manager.current_step() < cfg.optimization.max_update:
        set_lr(optimizer, args, manager.current_step())
        update(manager, optimizer, model, criterion, [next(batches) for _ in range(per_update)])
        if every and manager.current_step() % every == 0 and manager.participating_rank() == 0:
            torch.save({"user": state(), "torchft": manager.state_dict()}, f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)


def batches_of(task, model, cfg, num_replicas):
    """This replica's mini-batches; after a restart from the beginning."""
    for epoch in range(1, 1_000_000):
        yield from task.get_batch_iterator(
            dataset=task.dataset("train"),
            max_sentences=cfg.dataset.batch_size,
            max_positions=utils.resolve_max_positions(task.max_positions(), model.max_positions()),
            ignore_invalid_inputs=True,
            seed=cfg.common.seed,
            num_shards=num_replicas,
            shard_id=int(os.environ["REPLICA"]) % num_replicas,
            epoch=epoch,
        ).next_epoch_itr()


def set_lr(optimizer, args, step):
    """As fairseq's inverse_sqrt."""
    warmup = args.warmup_updates
    factor = step / warmup if step < warmup else (warmup / step) ** 0.5
    for group in optimizer.param_groups:
        group["lr"] = args.lr[0] * factor


def update(manager, optimizer, model, criterion, batches):
    """A step of all replicas that are there; written down if it counts."""
    begun = {"kind": "begun", "time": time.time()}
    manager.start_quorum()
    optimizer.zero_grad()
    time.sleep(recorder.PACE * len(batches))
    total, size = 0.0, 0
    for batch in batches:
        loss, sample_size, _ = criterion(model, batch)
        (loss / sample_size / len(batches)).backward()
        total, size = total + float(loss.detach()), size + int(sample_size)
    reduce(manager, [p.grad for p in model.parameters() if p.grad is not None])
    if not manager.should_commit():
        return
    optimizer.step()
    if not manager.is_participating():
        return  # it has only just got the state
    world = manager.num_participants()
    line = {
        **{"rank": int(os.environ["REPLICA"]), "world": world, "pid": os.getpid()},
        **{"group": f"quorum {manager._quorum_id}", "update": manager.current_step()},
        "ids": [i for batch in batches for i in batch["id"].tolist()],
    }
    recorder.write(line | begun)
    done = {"kind": "done", "time": time.time(), "loss": total / size / math.log(2)}
    recorder.write(line | done)


def reduce(manager, gradients):
    """The mean over all replicas, in one message."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    manager.allreduce(flat).wait()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


if __name__ == "__main__":
    main()
