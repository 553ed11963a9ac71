"""All pieces of one cluster, in the order in which they are made; removed in the opposite one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_ray_plugin.aws import image, prices, quotas, roles
from fairseq_ray_plugin.aws.account import Account, AwsError
from fairseq_ray_plugin.aws.bucket import Bucket
from fairseq_ray_plugin.aws.cluster_file import ClusterFile
from fairseq_ray_plugin.aws.file_system import FileSystem
from fairseq_ray_plugin.aws.network import SecurityGroup, default_network
from fairseq_ray_plugin.aws.pieces import Piece, Standing


@dataclass(frozen=True)
class Wish:
    """What the command line asks for.

    Attributes:
        name: of the cluster, and of what is made for it.
        bucket: instead of a file system; None: a file system.
        ssh_from: a network of addresses, as in 192.0.2.7/32.
    """

    name: str
    file: ClusterFile
    bucket: str | None
    ssh_from: str


class Plan:
    """The pieces that a wish takes, in an account."""

    def __init__(self, account: Account, wish: Wish) -> None:
        self._account, self._wish = account, wish
        spot = [node.instance_type for node in wish.file.workers if node.is_spot]
        workers = [node.instance_type for node in wish.file.workers]
        self._network = default_network(account, workers)
        zones = [subnet.zone for subnet in self._network.subnets]
        self.prices = prices.spot_prices(account, spot, zones)
        self.group = SecurityGroup(account, wish.name, self._network, wish.ssh_from)
        self.storage: Piece
        if wish.bucket is None:
            self.storage = FileSystem(
                account, wish.name, self._network, lambda: self.group.look().id
            )
        else:
            self.storage = Bucket(account, wish.bucket, wish.name)
        self.storage_is_in_group = wish.bucket is None
        self.pieces: list[Piece] = [self.group, self.storage, *self._roles()]
        if spot:
            self.pieces.append(roles.SpotRole(account))

    @functools.cached_property
    def image(self) -> str:
        return image.newest(self._account)

    def look(self) -> list[Standing]:
        return [piece.look() for piece in self.pieces]

    def quotas(self) -> list[quotas.Quota]:
        return quotas.quotas(self._account, self._wish.file)

    def zones(self) -> list[str]:
        """Where Ray is to look for room: the zones with the cheapest spot instances first."""
        by_price = [price.zone for price in self.prices]
        others = [subnet.zone for subnet in self._network.subnets]
        return list(dict.fromkeys([*by_price, *others]))

    def values(self, standings: Sequence[Standing]) -> dict[str, str]:
        """What takes the place of the cluster file's placeholders."""
        found = {
            "ClusterName": self._wish.name,
            "Region": self._account.region,
            "AvailabilityZones": ",".join(self.zones()),
            "ImageId": self.image,
            "FileSystemId": "",
            "Bucket": "",
        }
        for standing in standings:
            found |= standing.values
        return found

    def refuse_while_nodes_run(self) -> None:
        """Raises AwsError while the cluster has nodes."""
        pages = self._account.client("ec2").get_paginator("describe_instances")
        states = ["pending", "running", "stopping", "stopped"]
        running = [
            instance["InstanceId"]
            for page in pages.paginate(
                Filters=[
                    {"Name": "tag:ray-cluster-name", "Values": [self._wish.name]},
                    {"Name": "instance-state-name", "Values": states},
                ]
            )
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        ]
        if running:
            raise AwsError(
                f"the cluster still has {len(running)} instances ({running[0]}, ...): "
                "ray down CLUSTER_FILE first"
            )

    def _roles(self) -> list[Piece]:
        account, wish = self._account, self._wish
        name = f"{wish.name}-{account.region}"  # roles are the account's, in all regions
        may = roles.of_worker(wish.bucket)
        worker = roles.Role(account, wish.name, f"{name}-worker", may, "WorkerProfile")
        number = account.client("sts").get_caller_identity()["Account"]
        arn = f"arn:aws:iam::{number}:role/{worker.name}"
        may = roles.of_head(wish.name, arn, wish.bucket)
        return [worker, roles.Role(account, wish.name, f"{name}-head", may, "HeadProfile")]
