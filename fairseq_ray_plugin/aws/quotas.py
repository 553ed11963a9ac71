"""How many vCPUs of a kind the account may have at once, and whether that is enough."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fairseq_ray_plugin.aws.account import Account, code_of
from fairseq_ray_plugin.aws.cluster_file import ClusterFile, NodeType

CODES: Mapping[str, Mapping[bool, str]] = {
    "G and VT": {True: "L-3819A6DF", False: "L-DB2E81BA"},
    "P": {True: "L-7212CCBC", False: "L-417A185B"},
    "P5": {True: "L-C4BD4855", False: "L-417A185B"},
    "standard": {True: "L-34B43A08", False: "L-1216C47A"},
}
"""AWS's codes of its quotas on vCPUs, by class of instance and whether it is of spot."""

STANDARD = {"a", "c", "d", "h", "i", "im", "is", "m", "r", "t", "z"}
"""Beginnings of the names of types that share a quota."""


@dataclass(frozen=True)
class Quota:
    """A limit, and what the cluster asks of it at the most, in vCPUs.

    Attributes:
        allowed: None: the account does not say.
    """

    instance_class: str
    is_spot: bool
    code: str
    needed: int
    allowed: int | None

    @property
    def is_short(self) -> bool:
        return self.allowed is not None and self.allowed < self.needed

    def __str__(self) -> str:
        market = "spot" if self.is_spot else "on-demand"
        allowed = "unknown" if self.allowed is None else f"{self.allowed} allowed"
        name = f"{market} {self.instance_class} instances"
        return f"{name} ({self.code}): {self.needed} vCPUs at the most, {allowed}"


def class_of(instance_type: str) -> str:
    """The class of AWS's quotas that an instance type is in; empty: one that is not known here."""
    family = re.match(r"[a-z]+", instance_type)
    letters = family[0] if family else ""
    if letters in ("g", "gr", "vt"):
        return "G and VT"
    if instance_type.startswith("p5"):
        return "P5"
    if letters == "p":
        return "P"
    return "standard" if letters in STANDARD else ""


def needed(file: ClusterFile, num_vcpus: Mapping[str, int]) -> dict[tuple[str, bool], int]:
    """vCPUs at the most, by class and market: no more workers than the file allows in all.

    Args:
        num_vcpus: by instance type.
    """
    workers: dict[tuple[str, bool], list[int]] = {}
    for node in file.workers:
        key = class_of(node.instance_type), node.is_spot
        workers.setdefault(key, []).extend([num_vcpus[node.instance_type]] * node.most)
    most = {
        key: sum(sorted(each, reverse=True)[: file.most_workers]) for key, each in workers.items()
    }
    head = class_of(file.head.instance_type), file.head.is_spot
    most[head] = most.get(head, 0) + num_vcpus[file.head.instance_type]
    return {key: most[key] for key in sorted(most) if most[key]}


def quotas(account: Account, file: ClusterFile) -> list[Quota]:
    """Each quota that the cluster asks something of."""
    num_vcpus = _num_vcpus(account, [file.head, *file.workers])
    found = []
    for (instance_class, is_spot), vcpus in needed(file, num_vcpus).items():
        code = CODES.get(instance_class, {}).get(is_spot, "")
        allowed = _allowed(account, code) if code else None
        found.append(Quota(instance_class or "others", is_spot, code or "?", vcpus, allowed))
    return found


def _num_vcpus(account: Account, nodes: Iterable[NodeType]) -> Mapping[str, int]:
    types: Sequence[str] = sorted({node.instance_type for node in nodes})
    answer = account.client("ec2").describe_instance_types(InstanceTypes=types)
    return {one["InstanceType"]: one["VCpuInfo"]["DefaultVCpus"] for one in answer["InstanceTypes"]}


def _allowed(account: Account, code: str) -> int | None:
    from botocore.exceptions import ClientError

    client = account.client("service-quotas")
    try:
        answer = client.get_service_quota(ServiceCode="ec2", QuotaCode=code)
    except ClientError as error:
        if code_of(error) == "NoSuchResourceException":
            return None
        raise
    return int(answer["Quota"]["Value"])
