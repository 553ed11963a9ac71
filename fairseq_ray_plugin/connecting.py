"""Joining a Ray cluster, or starting a local Ray: errors are one line, and come within seconds."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any


def connect(address: str | None, may_start: bool = True) -> str:
    """Join a Ray cluster, or start a local one; returns which, for people.

    Args:
        may_start: where there is none.

    Raises:
        ConnectionError: `address` names a cluster that cannot be reached.
    """
    import ray

    from fairseq_ray_plugin.head import NAMESPACE

    # of a cluster, whoever follows a run is told its lines; a local Ray tells them itself
    common: dict[str, Any] = {"logging_level": logging.ERROR, "namespace": NAMESPACE}
    named, origin = address, "--ray-address"
    if address in (None, "auto"):
        named, origin = os.environ.get("RAY_ADDRESS") or "auto", "RAY_ADDRESS"
    if named == "local" and may_start:
        return _start_local(common)
    if named != "auto":
        _knock(str(named), origin)
    try:
        context = ray.init(address=named, log_to_driver=False, **common)
    except ConnectionError as error:
        if named != "auto":
            raise ConnectionError(
                f"{origin} {named}: {str(error).strip().splitlines()[0]}"
            ) from error
        if not may_start:
            raise ConnectionError(
                "no Ray cluster is found here: name it with --ray-address"
            ) from error
        return _start_local(common)
    where = f"Ray cluster at {context.address_info['gcs_address']}"
    return where + (" (RAY_ADDRESS)" if named != "auto" and origin == "RAY_ADDRESS" else "")


def _knock(address: str, origin: str) -> None:
    """Ray itself tries for minutes before it says that nobody is there."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ConnectionError(f'{origin} {address}: not "auto", "local" or HOST:PORT')
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"{origin} {address}: no Ray cluster answers there") from error


def _start_local(common: dict[str, Any]) -> str:
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # this machine is ours
    ray.init(address="local", include_dashboard=False, log_to_driver=True, **common)
    return f"local Ray on this machine, {int(ray.cluster_resources().get('CPU', 0))} CPUs"
