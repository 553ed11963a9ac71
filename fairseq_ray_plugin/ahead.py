"""What takes longest begins while the command still reads its options: workers, and their loop.

Workers import what every training needs, while the command imports fairseq and makes its
configuration. The control loop waits for that, and finds the workers there. Should nothing come of
it, they end.
"""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray

from fairseq_ray_plugin import following, head, placing
from fairseq_ray_plugin.assignment import Site
from fairseq_ray_plugin.connecting import connect
from fairseq_ray_plugin.distributed import RayDistributedActor
from fairseq_ray_plugin.holding import whole_name
from fairseq_ray_plugin.options import ElasticConfig

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Ahead:
    """What was begun before the options were read."""

    where: str
    """The cluster, for people."""

    site: Site
    """The run's."""

    config: ElasticConfig
    loop: Any = None
    """The run's, which waits for its plan; None: another has the save dir, and lives."""

    is_taken: bool = False

    def take(self, config: ElasticConfig) -> Site | None:
        """The site of the run, whose loop takes the workers over; None: they are of no use to it.

        Args:
            config: the run's.
        """
        if placing.need_of(config) != placing.need_of(self.config):
            self.end()
            return None
        self.is_taken = True
        return self.site

    def end(self) -> None:
        """Nobody takes them over."""
        if not self.is_taken and self.loop is not None:
            ray.kill(self.loop, no_restart=True)
            self.loop = None
            head.end_workers(self.site.name)


def place(site: Site, config: ElasticConfig, max_ranks: int | None, save_dir: str) -> Ahead:
    """Join the cluster, and place a worker wherever a loop would at first.

    Args:
        max_ranks: no more workers; None: no limit.

    Raises:
        ConnectionError: there is no such cluster.
    """
    ahead = Ahead(connect(config.ray_address, may_start=False), site, config)
    if following.find(save_dir) is not None:
        return ahead  # it will be followed
    try:
        ahead.loop = following.start(whole_name(save_dir), site.name)
        _place_workers(ahead, max_ranks)
    except BaseException as error:
        ahead.end()
        if not isinstance(error, Exception):
            raise
        logger.debug("nothing begins ahead: %r", error)  # the way without says what there is to say
    return ahead


def _place_workers(ahead: Ahead, max_ranks: int | None) -> None:
    config, site, limit_s = ahead.config, ahead.site, placing.UNASKED_LIMIT_S
    slots = sorted(head.survey().slots(placing.need_of(config)).items())
    nodes = [node for node, count in slots for _ in range(count)][:max_ranks]
    save_after_s = placing.save_after_s(head.nodes_outlast_head(), limit_s)

    def make(number: int, node: str) -> None:
        name = head.name_for(site.name, f"worker-{number}")
        placing.make(RayDistributedActor, name, node, config, site, save_after_s, limit_s)

    with ThreadPoolExecutor(8) as makers:  # Ray's head is asked whether each name is free
        list(makers.map(make, range(len(nodes)), nodes))
