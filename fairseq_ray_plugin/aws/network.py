"""Where the machines are and who may speak to them: the default network, and a security group."""

from __future__ import annotations

import ipaddress
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairseq_ray_plugin.aws.account import Account, AwsError
from fairseq_ray_plugin.aws.pieces import Standing, is_ours, tags

WHO_AM_I = "https://checkip.amazonaws.com"
"""Answers with the address that the question came from."""

SSH = 22


@dataclass(frozen=True)
class Subnet:
    id: str
    zone: str


@dataclass(frozen=True)
class Network:
    """The region's default network, which every account has unless it was removed."""

    id: str
    subnets: tuple[Subnet, ...]


def default_network(account: Account, instance_types: Sequence[str]) -> Network:
    """With the subnets in whose zones at least one of the types is offered.

    Raises:
        AwsError: there is none, or none of the types.
    """
    ec2 = account.client("ec2")
    networks = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not networks:
        raise AwsError(
            f"{account.region} has no default network: aws ec2 create-default-vpc "
            f"--region {account.region}"
        )
    offered = {
        offer["Location"]
        for page in ec2.get_paginator("describe_instance_type_offerings").paginate(
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": sorted(set(instance_types))}],
        )
        for offer in page["InstanceTypeOfferings"]
    }
    mine = [{"Name": "vpc-id", "Values": [networks[0]["VpcId"]]}]
    found = ec2.describe_subnets(Filters=mine)["Subnets"]
    by_zone = {
        subnet["AvailabilityZone"]: Subnet(subnet["SubnetId"], subnet["AvailabilityZone"])
        for subnet in found
        # Ray reaches nodes by public addresses
        if subnet["MapPublicIpOnLaunch"] and subnet["AvailabilityZone"] in offered
    }
    if not by_zone:
        raise AwsError(
            f"no zone of {account.region} with a public default subnet offers "
            f"{', '.join(sorted(set(instance_types)))}: take another --region or other types"
        )
    return Network(networks[0]["VpcId"], tuple(by_zone[zone] for zone in sorted(by_zone)))


def address_of_caller() -> str:
    """This machine's address as AWS sees it, as a network of one.

    Raises:
        AwsError: it cannot be had.
    """
    try:
        with urllib.request.urlopen(WHO_AM_I, timeout=10) as answer:
            return network_of(answer.read().decode().strip())
    except OSError as error:
        raise AwsError(f"{WHO_AM_I} does not answer ({error}): give --ssh-from ADDRESS") from None


def network_of(address: str) -> str:
    """An address, or a network of addresses, as AWS takes it.

    Raises:
        AwsError: it is none.
    """
    try:
        return str(ipaddress.IPv4Network(address))
    except ValueError as error:
        raise AwsError(f"--ssh-from {address}: {error}") from None


class SecurityGroup:
    """Lets in SSH from the caller, and everything from itself: Ray, ranks and the file system."""

    def __init__(self, account: Account, name: str, network: Network, ssh_from: str) -> None:
        self._ec2 = account.client("ec2")
        self._name, self._network, self._ssh_from = name, network, ssh_from
        self._what = f"security group {name}"

    def look(self) -> Standing:
        group = self._group()
        if group is None:
            lets_in = (f"SSH from {self._ssh_from}", "everything from itself")
            return Standing(self._what, missing=("the group", *lets_in))
        missing = tuple(words for words, _ in self._missing_rules(group))
        values = {"SecurityGroupId": group["GroupId"]}
        return Standing(self._what, group["GroupId"], missing, True, values)

    def make(self) -> None:
        if self._group() is None:
            self._ec2.create_security_group(
                GroupName=self._name,
                Description="Nodes of a Ray cluster that trains fairseq",
                VpcId=self._network.id,
                TagSpecifications=[{"ResourceType": "security-group", "Tags": tags(self._name)}],
            )
        group = self._group()
        assert group is not None
        for _, rule in self._missing_rules(group):
            self._ec2.authorize_security_group_ingress(
                GroupId=group["GroupId"], IpPermissions=[rule]
            )

    def remove(self) -> None:
        group = self._group()
        if group is not None:
            self._ec2.delete_security_group(GroupId=group["GroupId"])

    def _group(self) -> Any:
        found = self._ec2.describe_security_groups(
            Filters=[
                {"Name": "vpc-id", "Values": [self._network.id]},
                {"Name": "group-name", "Values": [self._name]},
            ]
        )["SecurityGroups"]
        if found and not is_ours(found[0].get("Tags"), self._name):
            raise AwsError(f"there is a {self._what} that was not made here: take another --name")
        return found[0] if found else None

    def _missing_rules(self, group: Any) -> list[tuple[str, dict[str, Any]]]:
        ssh: dict[str, Any] = {
            "IpProtocol": "tcp",
            "FromPort": SSH,
            "ToPort": SSH,
            "IpRanges": [{"CidrIp": self._ssh_from}],
        }
        itself: dict[str, Any] = {
            "IpProtocol": "-1",
            "UserIdGroupPairs": [{"GroupId": group["GroupId"]}],
        }
        rules = [(f"SSH from {self._ssh_from}", ssh), ("everything from itself", itself)]
        return [
            (words, rule) for words, rule in rules if not _is_among(rule, group["IpPermissions"])
        ]


def _is_among(rule: dict[str, Any], permissions: Sequence[Any]) -> bool:
    for permission in permissions:
        if any(rule.get(key) != permission.get(key) for key in ("IpProtocol", "FromPort")):
            continue
        addresses = {entry["CidrIp"] for entry in permission.get("IpRanges", ())}
        groups = {entry["GroupId"] for entry in permission.get("UserIdGroupPairs", ())}
        wanted = {entry["CidrIp"] for entry in rule.get("IpRanges", ())}
        wanted |= {entry["GroupId"] for entry in rule.get("UserIdGroupPairs", ())}
        if wanted <= addresses | groups:
            return True
    return False
