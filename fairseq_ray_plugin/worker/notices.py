"""What a machine is told of its own end: AWS's notice to a spot instance, two minutes ahead.

Ray does not read it. The instance's metadata service has it (IMDSv2: a token first, then
`spot/instance-action`, which is 404 until there is something to say).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from datetime import datetime
from http.client import HTTPException

from fairseq_ray_plugin.protocol import Notice

ENDPOINT = "http://169.254.169.254"

DMI_FILE = "/sys/class/dmi/id/modalias"
"""Names the makers of the machine and its firmware; those of EC2 have "amazon" among them."""

POLL_S = 5.0
"""How often the service is asked; AWS recommends this."""

ANSWER_S = 2.0
"""How long it may be silent; it is on the same machine."""

TOKEN_TTL_S = 21600


async def spot_notice() -> Notice | None:
    """The notice to this machine, as soon as there is one; None at once where none can come.

    A service that is slow or fails is asked again, and is no notice.
    """
    endpoint = _endpoint()
    if endpoint is None:
        return None
    token = None
    while True:
        try:
            if token is None:
                token = await asyncio.to_thread(_new_token, endpoint)
            return await asyncio.to_thread(_read, endpoint, token)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                token = None  # it has expired: a new one is got at the next look
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            pass
        await asyncio.sleep(POLL_S)


def _endpoint() -> str | None:
    """Where this machine's metadata is; None: it is no EC2 instance, or must not be asked."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    if named := os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"):
        return named.rstrip("/")
    try:
        with open(DMI_FILE) as file:
            # elsewhere nothing is sent: who asks for metadata there looks like a thief of keys
            return ENDPOINT if "amazon" in file.read().lower() else None
    except OSError:
        return None


def _new_token(endpoint: str) -> str:
    return _ask(
        f"{endpoint}/latest/api/token",
        "PUT",
        {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)},
    )


def _read(endpoint: str, token: str) -> Notice:
    text = _ask(
        f"{endpoint}/latest/meta-data/spot/instance-action",
        "GET",
        {"X-aws-ec2-metadata-token": token},
    )
    answer = json.loads(text)
    at = datetime.fromisoformat(answer["time"].replace("Z", "+00:00"))  # Python 3.10 knows no Z
    left_s = max(0.0, at.timestamp() - time.time())
    return Notice(f"AWS will {answer['action']} this spot instance", left_s)


def _ask(url: str, method: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, method=method, headers=headers)
    # no proxy: behind one is the metadata service of another machine
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=ANSWER_S) as answer:
        return str(answer.read().decode())
