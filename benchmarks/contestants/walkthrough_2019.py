"""The script of the 2019 walk-through, "Fault-Tolerant Fairseq Training", on today's libraries.

What it does is kept: one actor per resource, every failure restarts everything (ray.shutdown()
and ray.init() included), a checkpoint hook raises when the cluster has grown, and update_freq
keeps the batch. Only names that are gone have been replaced.
"""

import copy
import math
import os
import socket
import time
from contextlib import closing

from fairseq_ray_plugin import compat

compat.apply()

import ray  # noqa: E402


class RayDistributedActor:
    def run(self, url, world_rank, cfg):
        from fairseq_ray_plugin import compat

        compat.apply()
        import fairseq.checkpoint_utils
        from fairseq.distributed import utils as distributed_utils
        from fairseq_cli.train import main
        from omegaconf import open_dict

        with open_dict(cfg):
            cfg.distributed_training.distributed_rank = world_rank
            cfg.distributed_training.distributed_init_method = url
            cfg.distributed_training.distributed_no_spawn = True
            cfg.distributed_training.device_id = 0
        original = fairseq.checkpoint_utils.save_checkpoint
        n_before = cfg.distributed_training.distributed_world_size
        kind = "CPU" if cfg.common.cpu else "GPU"

        def save_checkpoint(*args, **kwargs):
            original(*args, **kwargs)
            n_now = int(ray.cluster_resources().get(kind, 0))
            if n_now > n_before:
                raise Exception(f"New {kind}s found (original {n_before}, now {n_now})")

        fairseq.checkpoint_utils.save_checkpoint = save_checkpoint
        if n_before > 1:
            distributed_utils.distributed_main(0, main, cfg, {})
        else:
            main(cfg)

    def get_node_ip(self):
        return ray.util.get_node_ip_address()

    def find_free_port(self):
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as s:
            s.bind(("", 0))
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return s.getsockname()[1]


def run_fault_tolerant_loop():
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    parser = options.get_training_parser()
    parser.add_argument("--ray-address", default="auto")
    parser.add_argument(
        "--fix-batch-size",
        default=None,
        type=lambda uf: options.eval_str_list(uf, type=int),
    )
    args = options.parse_args_and_arch(parser)
    environment = {k: v for k, v in os.environ.items() if k.startswith(("FAIRSEQ_", "PYTHONPATH"))}
    retry = True
    while retry:
        ray.init(
            address=args.ray_address, log_to_driver=True, runtime_env={"env_vars": environment}
        )
        run_args = copy.deepcopy(args)
        kind = "CPU" if args.cpu else "GPU"
        n = int(ray.cluster_resources().get(kind, 0))
        while n == 0:
            time.sleep(10)
            n = int(ray.cluster_resources().get(kind, 0))
        run_args.distributed_world_size = n
        if args.fix_batch_size is not None:
            per_step = args.batch_size * n
            run_args.update_freq = [math.ceil(b / per_step) for b in args.fix_batch_size]
        cfg = convert_namespace_to_omegaconf(run_args)
        Actor = ray.remote(num_cpus=1, num_gpus=int(not args.cpu))(RayDistributedActor)
        workers = [Actor.remote() for _ in range(n)]
        try:
            ip = ray.get(workers[0].get_node_ip.remote())
            port = ray.get(workers[0].find_free_port.remote())
            address = f"tcp://{ip}:{port}"
            unfinished = [w.run.remote(address, i, cfg) for i, w in enumerate(workers)]
            while unfinished:
                finished, unfinished = ray.wait(unfinished)
                ray.get(finished)
            retry = False
        except Exception as error:
            print("Ray restart because following error occurs:", flush=True)
            print(str(error)[-2000:], flush=True)
        ray.shutdown()


if __name__ == "__main__":
    run_fault_tolerant_loop()
