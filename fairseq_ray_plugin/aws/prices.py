"""What a spot instance costs now: AWS's own history of prices, of which the last entry counts."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from fairseq_ray_plugin.aws.account import Account


@dataclass(frozen=True)
class Price:
    """Of an instance type in a zone, in US dollars an hour."""

    instance_type: str
    zone: str
    dollars: float

    def __str__(self) -> str:
        return f"{self.instance_type} {self.dollars:.4f} in {self.zone}"


def spot_prices(
    account: Account, instance_types: Sequence[str], zones: Sequence[str]
) -> list[Price]:
    """The cheapest first; only what is offered has a price."""
    if not instance_types:
        return []
    pages = account.client("ec2").get_paginator("describe_spot_price_history")
    latest: dict[tuple[str, str], tuple[datetime.datetime, float]] = {}
    for page in pages.paginate(
        InstanceTypes=sorted(set(instance_types)),
        ProductDescriptions=["Linux/UNIX"],
        # the prices that are in force at this moment, however old they are
        StartTime=datetime.datetime.now(datetime.timezone.utc),
    ):
        for entry in page["SpotPriceHistory"]:
            key = entry["InstanceType"], entry["AvailabilityZone"]
            at, dollars = entry["Timestamp"], float(entry["SpotPrice"])
            if key[1] in zones and (key not in latest or latest[key][0] < at):
                latest[key] = at, dollars
    found = [Price(*key, dollars) for key, (_, dollars) in latest.items()]
    return sorted(found, key=lambda price: (price.dollars, price.instance_type, price.zone))
