"""`fairseq-ray-train`: fairseq's own command line, with Ray where it would start processes."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import hashlib
import importlib.util
import logging
import math
import os
import pickle
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fairseq_ray_plugin import driver, early, usage, watching
from fairseq_ray_plugin.assignment import Job, Site
from fairseq_ray_plugin.checkpoints import claim, claim_places, stores
from fairseq_ray_plugin.connecting import connect
from fairseq_ray_plugin.holding import Unusable, hold, whole_name
from fairseq_ray_plugin.options import (
    ElasticConfig,
    add_ray_args,
    last_checkpoint,
    mini_batches_per_update,
    most_ranks,
    refuse_sharded_states,
)
from fairseq_ray_plugin.report import journal
from fairseq_ray_plugin.worker import terminal, user_code

if TYPE_CHECKING:
    from fairseq_ray_plugin.ahead import Ahead

logger = logging.getLogger(__name__)


def cli_main() -> None:
    """The command `fairseq-ray-train`: every option of `fairseq-train`, and our own."""
    _answer(usage.TRAIN)
    _attach_if_asked()
    from fairseq_ray_plugin import compat

    compat.require_fairseq()
    ahead = early.begin()
    try:
        gc.disable()  # what is imported stays, and looking through it for garbage takes its time
        compat.apply()
        import fairseq_cli.train

        register("auto", ahead)
        fairseq_cli.train.cli_main()
    except BaseException:
        if ahead is not None:
            ahead.end()
        raise


def _answer(line: str) -> None:
    exit_code = usage.answer(sys.argv[1:], line)
    if exit_code is not None:
        sys.exit(exit_code)


def hydra_cli_main() -> None:
    """The command `fairseq-ray-hydra-train`: our options first, then what hydra takes."""
    _answer(usage.HYDRA)
    _attach_if_asked()
    from fairseq_ray_plugin import compat

    compat.require_fairseq()
    compat.apply()
    import fairseq_cli.hydra_train

    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    add_ray_args(parser)
    if {"-h", "--help"} & set(sys.argv[1:]):
        parser.print_help()
    args, rest = parser.parse_known_args()
    config = _config_or_exit(args)
    sys.argv[1:] = rest
    _route_to_ray(lambda: config)
    fairseq_cli.hydra_train.cli_main()


def _attach_if_asked() -> None:
    """With --ray-attach, follow a run and exit: nothing else of the command line counts."""
    if "--ray-attach" not in (argument.partition("=")[0] for argument in sys.argv):
        return
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_ray_args(parser)
    args, _ = parser.parse_known_args()
    logging.basicConfig(  # as fairseq has it
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        level=os.environ.get("LOGLEVEL", "INFO").upper(),
        stream=sys.stdout,
    )
    early.print_ranks_lines_as_they_are()
    try:
        connect(args.ray_address, may_start=False)
        from fairseq_ray_plugin import following

        exit_code = following.attach(args.ray_attach)
    except (ConnectionError, ValueError) as error:
        usage.refuse(error)
    sys.exit(exit_code)


def register(default_address: str | None = None, ahead: Ahead | None = None) -> None:
    """fairseq's training parser has our options, and what they ask for happens on Ray.

    Args:
        default_address: --ray-address when it is not given; None leaves stock training as it is.
        ahead: what was begun before fairseq was imported.
    """
    from fairseq import options

    if getattr(options.add_optimization_args, "ray_args", False):
        return
    asked: list[ElasticConfig] = []
    # only the training parser has this group, and it is made after --user-dir was imported
    add_optimization_args = options.add_optimization_args

    @functools.wraps(add_optimization_args)
    def with_ray_args(parser: argparse.ArgumentParser) -> Any:
        group = add_optimization_args(parser)
        add_ray_args(parser, default_address)
        if default_address is not None:
            usage.explain(parser)
        return group

    with_ray_args.ray_args = True  # type: ignore[attr-defined]
    options.add_optimization_args = with_ray_args
    for module in _training_modules():
        convert = module.convert_namespace_to_omegaconf

        @functools.wraps(convert)
        def remember(args: argparse.Namespace, convert: Any = convert) -> Any:
            asked[:] = [_config_or_exit(args)]
            return convert(args)

        module.convert_namespace_to_omegaconf = remember
    _route_to_ray(lambda: asked[0] if asked else None, ahead)


def _training_modules() -> list[Any]:
    """fairseq_cli.train under each name it was loaded by (`python fairseq_cli/train.py`)."""
    modules: list[types.ModuleType | None] = [sys.modules.get("fairseq_cli.train")]
    script = sys.modules["__main__"]
    if hasattr(script, "convert_namespace_to_omegaconf"):
        modules.append(script)
    return [module for module in modules if module is not None]


def _route_to_ray(
    config_of_run: Callable[[], ElasticConfig | None], ahead: Ahead | None = None
) -> None:
    from fairseq.distributed import utils as distributed_utils

    call_main = distributed_utils.call_main

    @functools.wraps(call_main)
    def call_main_on_ray(cfg: Any, main: Any, **kwargs: Any) -> Any:
        config = config_of_run()
        if config is None or config.ray_address is None:
            return call_main(cfg, main, **kwargs)
        gc.freeze()
        gc.enable()
        exit_code = run_fault_tolerant_loop(cfg, config, ahead)
        if exit_code:
            sys.exit(exit_code)
        return None

    distributed_utils.call_main = call_main_on_ray


def _config_or_exit(args: argparse.Namespace) -> ElasticConfig:
    try:
        config = ElasticConfig.from_args(args)
        if config.ray_address is None and config.fix_batch_size is not None:
            raise ValueError("--fix-batch-size needs --ray-address")
        if args.ray_attach is not None:
            raise ValueError("--ray-attach: the command is fairseq-ray-train --ray-attach SAVE_DIR")
        return config
    except ValueError as error:
        usage.refuse(error)


def run_fault_tolerant_loop(cfg: Any, config: ElasticConfig, ahead: Ahead | None = None) -> int:
    """Train as `cfg` says, on whatever Ray has, until the end; returns the exit code.

    Args:
        cfg: fairseq's configuration (FairseqConfig), as `fairseq-train` would use it.
        ahead: what was begun before it was there.
    """
    from fairseq_ray_plugin.compat import defects

    config = dataclasses.replace(config, cpu=cfg.common.cpu)
    try:
        defects.check_libnat(cfg)
        groups = None
        if config.fix_batch_size is not None:
            groups = mini_batches_per_update(
                config.fix_batch_size, cfg.dataset.batch_size, cfg.dataset.max_tokens
            )
        _refuse_lost_positions(cfg, config)
        refuse_sharded_states(cfg.distributed_training)
        # all are, here; and fairseq's way leaves out all but the first of a checkpoint's names
        cfg.checkpoint.write_checkpoints_asynchronously = False
        save_dir = cfg.checkpoint.save_dir
        claim.refuse_if_in_use(claim_places.place_of(save_dir), stores.shown(save_dir))
        if not stores.is_url(save_dir):
            journal.Journal(save_dir)  # there is no use in training without a save dir
    except (ValueError, OSError, claim.InUse, stores.StoreError) as error:
        usage.refuse(error)
    early.print_ranks_lines_as_they_are()
    import ray

    from fairseq_ray_plugin import following, residence

    try:
        where = connect(config.ray_address) if ahead is None else ahead.where
    except ConnectionError as error:
        usage.refuse(error)
    logger.info("training on %s", where)
    if not config.cpu and where.startswith("local") and not ray.cluster_resources().get("GPU"):
        logger.warning("this machine has no GPU: training on its CPUs, as with --cpu")
        config = dataclasses.replace(config, cpu=True)
        cfg.common.cpu = True
    max_ranks = most_ranks(config, cfg.dataset.batch_size, cfg.dataset.max_tokens)
    terminal.announce(cfg.common)
    site = ahead.take(config) if ahead is not None else None
    job = _job(cfg, config, groups, site or early.site_for(config))
    if where.startswith("local"):  # which ends with this process, whatever lives there
        exit_code = _train_here(job, config, max_ranks, cfg.checkpoint.save_dir)
    else:
        plan = residence.Plan(
            job=job,
            config=config,
            max_ranks=max_ranks,
            save_dir=whole_name(cfg.checkpoint.save_dir),
            options=_digest(cfg, config),
        )
        try:
            exit_code = following.run(plan, ahead.loop if ahead is not None else None)
        except (ConnectionError, ValueError) as error:
            usage.refuse(error)
    # as at the interpreter's exit: it waits for the last lines of the ranks of a local Ray
    ray.shutdown(_exiting_interpreter=where.startswith("local"))
    return exit_code


def _train_here(job: Job, config: ElasticConfig, max_ranks: int | None, save_dir: str) -> int:
    """The control loop lives in this process."""
    from fairseq_ray_plugin import distributed

    try:
        with hold(job, save_dir) as held:
            cluster = distributed.RayCluster(held.job, config, max_ranks, math.inf)
            with watching.on_this_terminal() as watchers:
                return driver.drive(
                    cluster, config, max_ranks, held.journal, held.claim, watchers=watchers
                )
    except Unusable as error:
        usage.refuse(error)


def _digest(cfg: Any, config: ElasticConfig) -> str:
    """Of all options; where Ray is makes no difference."""
    from omegaconf import OmegaConf

    options = repr((OmegaConf.to_container(cfg), dataclasses.replace(config, ray_address=None)))
    return hashlib.sha256(options.encode()).hexdigest()


def _refuse_lost_positions(cfg: Any, config: ElasticConfig) -> None:
    """Options that order an epoch by the number of ranks make a resize repeat and skip samples."""
    for option, given in (
        ("--grouped-shuffling", cfg.dataset.grouped_shuffling),
        ("--fix-batches-to-gpus", cfg.distributed_training.fix_batches_to_gpus),
    ):
        if given and not config.restart_epoch:
            raise ValueError(
                f"{option} orders the data by the number of workers, so a resize would repeat "
                "and skip samples: leave it out, or start the epoch again at each resize with "
                "--ray-restart-epoch, or fix the number with --ray-min-workers N "
                "--ray-max-workers N"
            )


def _job(cfg: Any, config: ElasticConfig, groups: tuple[int, ...] | None, site: Site) -> Job:
    user_dir = find_user_dir(cfg.common.user_dir)
    packed, not_sent = _pack(user_dir, cfg) if user_dir else (None, "")
    return Job(
        **{field.name: getattr(site, field.name) for field in dataclasses.fields(site)},
        cfg=pickle.dumps(cfg),
        groups=groups,
        restart_epoch=config.restart_epoch,
        drops_batches=config.fix_batch_size is None or config.allow_dropped_batches,
        snapshot_updates=config.snapshot_updates,
        user_dir=user_dir,
        user_dir_zip=packed,
        user_dir_not_sent=not_sent,
        last_checkpoint=_path_of_last(cfg.checkpoint),
        store=cfg.checkpoint.save_dir if stores.is_url(cfg.checkpoint.save_dir) else "",
    )


def _path_of_last(checkpoint: Any) -> str:
    path = last_checkpoint(checkpoint)
    if stores.is_url(checkpoint.save_dir):
        return f"{stores.shown(checkpoint.save_dir)}/{os.path.basename(path)}"
    return os.path.abspath(path)


def _pack(user_dir: str, cfg: Any) -> tuple[bytes | None, str]:
    """What is sent of --user-dir to nodes that do not have it, or why nothing is."""
    data = str(getattr(cfg.task, "data", None) or "").split(os.pathsep)
    no_code = [*data, cfg.checkpoint.save_dir, cfg.common.tensorboard_logdir]
    try:
        return user_code.pack_folder(user_dir, [path for path in no_code if path]), ""
    except user_code.NotSent as error:
        logger.warning(
            "--user-dir %s is not sent to nodes that do not have it: %s", user_dir, error
        )
        return None, str(error)


def find_user_dir(user_dir: str | None) -> str | None:
    """The folder that fairseq means by --user-dir; None: not given, or this plugin itself."""
    if not user_dir:
        return None
    import fairseq

    package = os.path.dirname(fairseq.__file__)
    places = (user_dir, os.path.join(package, user_dir), os.path.join(package, "..", user_dir))
    folder = next((os.path.abspath(place) for place in places if os.path.isdir(place)), None)
    ours = importlib.util.find_spec("fairseq_ray_plugin")
    if ours is not None and folder in (ours.submodule_search_locations or []):
        return None
    return folder
