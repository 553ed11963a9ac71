"""What one would write instead: stock fairseq in Ray Train's TorchTrainer.

Elastic (as many workers as there is room for), failures without limit, state from fairseq's own
checkpoints.
"""

import os

from fairseq_ray_plugin import compat

compat.apply()


def train(config):
    import math

    from fairseq_ray_plugin import compat

    compat.apply()
    import ray.train
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli.train import main

    args, fixed = config["args"], config["fixed"]
    context = ray.train.get_context()
    world_size = context.get_world_size()
    args.distributed_world_size = world_size
    args.distributed_rank = context.get_world_rank()
    # Ray Train has made the process group already; this tells one from the next
    args.distributed_init_method = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    args.distributed_no_spawn = True
    args.device_id = 0
    if fixed:
        args.update_freq = [math.ceil(b / (args.batch_size * world_size)) for b in fixed]
    main(convert_namespace_to_omegaconf(args))


def run():
    import ray
    from fairseq import options
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    parser = options.get_training_parser()
    parser.add_argument("--ray-address", default="auto")
    parser.add_argument("--max-workers", type=int, default=2)
    parser.add_argument(
        "--fix-batch-size",
        default=None,
        type=lambda uf: options.eval_str_list(uf, type=int),
    )
    args = options.parse_args_and_arch(parser)
    environment = {k: v for k, v in os.environ.items() if k.startswith(("FAIRSEQ_", "PYTHONPATH"))}
    ray.init(address=args.ray_address, runtime_env={"env_vars": environment})
    TorchTrainer(
        train,
        train_loop_config={"args": args, "fixed": args.fix_batch_size},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=(1, args.max_workers), use_gpu=False),
        run_config=RunConfig(
            failure_config=FailureConfig(max_failures=-1),
            storage_path=os.path.abspath(args.save_dir) + "_ray_train",
        ),
    ).fit()


if __name__ == "__main__":
    run()
