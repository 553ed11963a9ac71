"""The file for `ray up`: what it asks for, and its placeholders filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairseq_ray_plugin.aws.account import AwsError

PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class NodeType:
    """One of the kinds of machines that the file asks for."""

    name: str
    instance_type: str
    is_spot: bool
    most: int
    """How many there may be."""


@dataclass(frozen=True)
class ClusterFile:
    """What stands in the file with the placeholders."""

    text: str
    head: NodeType
    workers: tuple[NodeType, ...]
    most_workers: int
    """Of all types together."""

    @property
    def placeholders(self) -> frozenset[str]:
        settings = re.sub(r"(?m)^\s*#.*$", "", self.text)
        return frozenset(PLACEHOLDER.findall(settings))

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with the values in place of the placeholders.

        Raises:
            AwsError: there is a placeholder of which nobody knows the value.
        """
        unknown = sorted(self.placeholders - set(values))
        if unknown:
            raise AwsError(f"the cluster file has placeholders that nothing fills in: {unknown}")
        # in comments they stand for themselves
        return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), self.text)


def read(path: str) -> ClusterFile:
    """The file at the path.

    Raises:
        AwsError: it is not there, or is none that `ray up` takes for AWS.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise AwsError(
            f"{path}: {error.strerror}: run this in the checkout's top folder, or name the file "
            "with --cluster-file"
        ) from None
    try:
        content = yaml.safe_load(text)
        types = content["available_node_types"]
        head = content["head_node_type"]
        if content["provider"]["type"] != "aws":
            raise AwsError(f"{path}: provider.type is not aws")
        nodes = {name: _node_type(name, of) for name, of in types.items()}
        return ClusterFile(
            text=text,
            head=nodes.pop(head),
            workers=tuple(nodes.values()),
            most_workers=int(content["max_workers"]),
        )
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise AwsError(f"{path}: no cluster file as ray up takes it: {error!r}") from None


def _node_type(name: str, of: Mapping[str, Any]) -> NodeType:
    config = of["node_config"]
    market = config.get("InstanceMarketOptions", {}).get("MarketType")
    most = int(of.get("max_workers", 0))
    return NodeType(name, config["InstanceType"], market == "spot", most)


def write(path: str, text: str) -> bool:
    """The text is at the path; False: something was there before, and stays.

    Raises:
        AwsError: it cannot be written.
    """
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise AwsError(f"{path}: {error.strerror}") from None
    return True
