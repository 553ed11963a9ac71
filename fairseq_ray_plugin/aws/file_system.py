"""A file system for all nodes (EFS), with an entrance (a mount target) in every zone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fairseq_ray_plugin.aws.account import Account, AwsError
from fairseq_ray_plugin.aws.network import Network
from fairseq_ray_plugin.aws.pieces import Standing, is_ours, tags

PATIENCE_S = 300.0
"""How long AWS may take to make or remove one; a mount target takes a minute or two."""

POLL_S = 3.0


class FileSystem:
    """Encrypted, and paid by what lies on it.

    Args:
        group: tells the id of the security group that its mount targets are in.
    """

    def __init__(
        self, account: Account, name: str, network: Network, group: Callable[[], str]
    ) -> None:
        self._efs = account.client("efs")
        self._name, self._network, self._group = name, network, group
        self._what = f"file system {name}"

    def look(self) -> Standing:
        found = self._found()
        if found is None:
            zones = ", ".join(subnet.zone for subnet in self._network.subnets)
            return Standing(self._what, missing=("the file system", f"mount targets in {zones}"))
        there = {target["AvailabilityZoneName"] for target in self._targets(found)}
        missing = tuple(
            f"mount target in {subnet.zone}"
            for subnet in self._network.subnets
            if subnet.zone not in there
        )
        identity = found["FileSystemId"]
        return Standing(self._what, identity, missing, True, {"FileSystemId": identity})

    def make(self) -> None:
        if self._found() is None:
            self._efs.create_file_system(
                CreationToken=self._name,  # a second one with it is refused
                Encrypted=True,
                ThroughputMode="elastic",
                Tags=tags(self._name),
            )
        found = self._until(lambda there: there is not None and _is_available(there))
        there = {target["AvailabilityZoneName"] for target in self._targets(found)}
        for subnet in self._network.subnets:
            if subnet.zone not in there:
                self._efs.create_mount_target(
                    FileSystemId=found["FileSystemId"],
                    SubnetId=subnet.id,
                    SecurityGroups=[self._group()],
                )
        self._until(lambda there: all(map(_is_available, self._targets(there))))

    def remove(self) -> None:
        found = self._found()
        if found is None:
            return
        for target in self._targets(found):
            self._efs.delete_mount_target(MountTargetId=target["MountTargetId"])
        self._until(lambda there: not self._targets(there))
        self._efs.delete_file_system(FileSystemId=found["FileSystemId"])

    def _found(self) -> Any:
        found = self._efs.describe_file_systems(CreationToken=self._name)["FileSystems"]
        found = [one for one in found if one["LifeCycleState"] not in ("deleting", "deleted")]
        if found and not is_ours(found[0].get("Tags"), self._name):
            raise AwsError(f"there is a {self._what} that was not made here: take another --name")
        return found[0] if found else None

    def _targets(self, found: Mapping[str, Any]) -> list[Any]:
        answer = self._efs.describe_mount_targets(FileSystemId=found["FileSystemId"])
        targets: list[Any] = answer["MountTargets"]
        return targets

    def _until(self, is_so: Callable[[Any], bool]) -> Any:
        end = time.monotonic() + PATIENCE_S
        while True:
            found = self._found()
            if is_so(found):
                return found
            if time.monotonic() > end:
                raise AwsError(
                    f"the {self._what} was asked for {PATIENCE_S:.0f} s ago and is not there yet: "
                    "run the same command again"
                )
            time.sleep(POLL_S)


def _is_available(one: Mapping[str, Any]) -> bool:
    return bool(one["LifeCycleState"] == "available")
