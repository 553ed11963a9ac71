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
        ConnectionError: `address` names a cluster that cannot be reached, or none can be started.
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
        _show_token(str(named), origin)
    try:
        if named == "auto" and _was_killed():
            raise ConnectionError("the cluster that was here is no more")
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


def _was_killed() -> bool:
    """Whether "auto" means a cluster that has left a file alone: Ray tries it for minutes."""
    try:
        from ray._private.services import get_ray_address_from_environment

        _knock(str(get_ray_address_from_environment("auto", None)), "auto")
    except ConnectionError as error:
        return "answers" in str(error)  # else there is none, which Ray says at once
    except (ImportError, TypeError):  # another Ray's way
        pass
    return False


def _knock(address: str, origin: str) -> None:
    """Ray itself tries for minutes before it says that nobody is there."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ConnectionError(f'{origin} {address}: not "auto", "local" or HOST:PORT')
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"{origin} {address}: no Ray cluster answers there") from error


def _show_token(address: str, origin: str) -> None:
    """A cluster that wants Ray's token gets it, as one that is found by "auto" does.

    Ray, told the address, sends none unless RAY_AUTH_MODE says so; a refusal takes it 20 s.
    """
    from ray import exceptions

    Unauthorized = getattr(exceptions, "AuthenticationError", None)
    if Unauthorized is None:
        return  # this Ray knows no tokens
    from ray._private.authentication import authentication_token_setup as tokens
    from ray._raylet import GcsClient

    try:
        tokens.ensure_token_if_auth_enabled(create_token_if_missing=False)  # Ray aborts without
        try:
            GcsClient(address=address)
        except Unauthorized:
            if not tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
                raise
            GcsClient(address=address)
    except Unauthorized as error:
        raise ConnectionError(
            f"{origin} {address}: this cluster wants a token, and the one here is missing or "
            "another's: copy ~/.ray/auth_token from its head node, or set RAY_AUTH_TOKEN to what "
            "is in it, and unset RAY_AUTH_MODE"
        ) from error
    except Exception as error:  # Ray's errors of RPC have no public name
        raise ConnectionError(f"{origin} {address}: no Ray cluster answers there") from error


def _start_local(common: dict[str, Any]) -> str:
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # this machine is ours
    try:
        ray.init(address="local", include_dashboard=False, log_to_driver=True, **common)
    except Exception as error:  # Ray's has no other name; as where the machine is very busy
        reason = str(error).strip().partition("\n")[0]
        raise ConnectionError(f"a local Ray could not be started here: {reason}") from error
    return f"local Ray on this machine, {int(ray.cluster_resources().get('CPU', 0))} CPUs"
