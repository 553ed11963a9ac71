"""A training process of stock fairseq under torchrun, which restarts all of them at every change.

State comes from fairseq's own checkpoints. torchrun says how many there are now; update_freq keeps
the batch.
"""

import math
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from fairseq_ray_plugin import compat

compat.apply(skip={"encoder_copies"})


def main():
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli.train import main as train

    parser = options.get_training_parser()
    parser.add_argument("--fix-batch-size", type=int)
    args = options.parse_args_and_arch(parser)
    args.distributed_world_size = int(os.environ["WORLD_SIZE"])
    args.distributed_rank = int(os.environ["RANK"])
    # not env://: after a restart that would read what the last group has left in the agent's store
    args.distributed_init_method = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    args.distributed_no_spawn = True
    args.device_id = 0
    if args.fix_batch_size:
        per_round = args.batch_size * args.distributed_world_size
        args.update_freq = [math.ceil(args.fix_batch_size / per_round)]
    cfg = convert_namespace_to_omegaconf(args)
    if args.distributed_world_size > 1:
        from fairseq.distributed import utils

        utils.distributed_main(0, train, cfg, {})
    else:
        train(cfg)


if __name__ == "__main__":
    main()
