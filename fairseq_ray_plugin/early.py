"""What is done before fairseq is imported: refuse what can be, and let workers begin."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fairseq_ray_plugin import usage
from fairseq_ray_plugin.assignment import Site
from fairseq_ray_plugin.checkpoints import claim, claim_places, stores
from fairseq_ray_plugin.options import ElasticConfig, add_ray_args, most_ranks

if TYPE_CHECKING:
    from fairseq_ray_plugin.ahead import Ahead

FORWARDED = (
    *("GLOO_", "TORCH_", "PYTORCH_", "WANDB_", "FAIRSEQ_"),
    # for GPUs, and the networks between them: InfiniBand, EFA, and NCCL's plugins
    *("NCCL_", "CUDA_", "CUBLAS", "CUDNN_", "NVIDIA_TF32_OVERRIDE", "NVTE_"),
    *("FI_", "OFI_NCCL_", "RDMAV_", "IBV_", "UCX_"),
    # where a store is, and how it is spoken to; who may is each node's own
    *("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_REQUEST_CHECKSUM_CALCULATION"),
)
"""Environment variables with these beginnings go from the driver to every worker."""

OF_A_NODE = ("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH", "CUDA_MPS_")
"""But not these: Ray gives each worker its GPU, and paths are each node's own."""


def forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the driver's environment every worker has, too."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(FORWARDED) and not name.startswith(OF_A_NODE)
    }


def site_for(config: ElasticConfig) -> Site:
    """That of a new run of this process."""
    return Site(
        run_id=secrets.token_hex(16),
        threads=config.cpus_per_worker,
        working_dir=os.getcwd(),
        python_path=tuple(path for path in os.environ.get("PYTHONPATH", "").split(":") if path),
        environment=forwarded(os.environ),
    )


def begin() -> Ahead | None:
    """Refuse what cannot be, and place workers; None: there is no cluster yet to place them on."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_ray_args(parser)
    # as fairseq has them
    parser.add_argument("--save-dir", default="checkpoints")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--batch-size", "--max-sentences", type=int)
    parser.add_argument("--max-tokens", type=int)
    try:
        args, rest = parser.parse_known_args()
    except argparse.ArgumentError:  # which fairseq's own parser will tell
        return None
    if {"-h", "--help"} & set(rest):
        return None
    _refuse(args.save_dir)
    try:
        config = ElasticConfig.from_args(args, cpu=args.cpu)
        max_ranks = most_ranks(config, args.batch_size, args.max_tokens)
    except ValueError:  # likewise
        return None
    return _place(config, max_ranks, args.save_dir)


def _refuse(save_dir: str) -> None:
    """A save dir in use, or a store that is not there."""
    try:
        claim.refuse_if_in_use(claim_places.place_of(save_dir), stores.shown(save_dir))
    except (claim.InUse, stores.StoreError) as error:
        usage.refuse(error)
    except OSError as error:
        if stores.is_url(save_dir):
            usage.refuse(error)
        # of a disk it is said when the claim is made


def _place(config: ElasticConfig, max_ranks: int | None, save_dir: str) -> Ahead | None:
    named = os.environ.get("RAY_ADDRESS") if config.ray_address == "auto" else config.ray_address
    if named == "local":
        return None
    print_ranks_lines_as_they_are()
    from fairseq_ray_plugin import ahead

    try:
        return ahead.place(site_for(config), config, max_ranks, save_dir)
    except ConnectionError as error:
        if named not in (None, "", "auto"):
            usage.refuse(error)
        return None  # a local Ray will be started


def print_ranks_lines_as_they_are() -> None:
    """Every rank's line counts, and looks as fairseq wrote it; Ray reads this when imported."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")
