"""S3, and what speaks like it, through boto3's own transfer."""

from __future__ import annotations

import base64
import contextlib
import datetime
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq_ray_plugin.checkpoints import files, s3_errors
from fairseq_ray_plugin.checkpoints.stores import (
    Damaged,
    Entry,
    Exists,
    Missing,
    StoreError,
    Unreachable,
    crc32_of,
    join,
)

logger = logging.getLogger(__name__)

MB = 1 << 20
PART = 32 * MB
"""Of an upload or a download; s3transfer makes it larger for files of more than 10,000 parts."""
THREADS = 8
COPIED_AT_ONCE = 4 << 30
"""S3 copies 5 GB in one request, and keeps the checksum of the whole then."""
TRIES = 3
"""When what has arrived is not what was sent."""


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for."""

    connect_s: float = 15.0
    """Also how long it may take in nothing of what it is sent."""
    read_s: float = 60.0
    attempts: int = 8
    """A request, with growing pauses between (up to 20 s): about a minute where none succeeds."""


class S3Store:
    """Objects in a bucket, below a prefix.

    Credentials, region and endpoint are found as boto3 ever finds them (environment, files,
    instance; AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3). CRC32s of whole objects are sent and
    compared, unless AWS_REQUEST_CHECKSUM_CALCULATION=when_required says that a server has none.
    """

    def __init__(self, bucket: str, prefix: str, patience: Patience | None = None) -> None:
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket, self._prefix = bucket, prefix
        self._client = _client(self.url, patience or Patience())
        config = self._client.meta.config
        # over TLS nothing changes on the way unnoticed, also where a server has no checksums
        self._by_tls = self._client.meta.endpoint_url.startswith("https:")
        self._sends_checksums = config.request_checksum_calculation != "when_required"

    def put(self, local_path: str, name: str, crc32: int | None = None) -> None:
        size = os.path.getsize(local_path)
        crc32 = crc32_of(local_path) if crc32 is None else crc32
        checksum = {"ChecksumCRC32": _encoded(crc32)} if self._sends_checksums else {}
        for _ in range(TRIES):
            try:
                with self._explained(name), _transfers(self._client) as transfers:
                    transfers.upload(local_path, self._bucket, self._key(name), checksum).result()
            except Damaged:  # the server itself has noticed
                continue
            if self._has(name, size, crc32, by_reading=not self._by_tls):
                return
            logger.warning("%s arrived damaged: sending it again", self._shown(name))
        raise Damaged(
            f"{self._shown(name)} arrives damaged at each of {TRIES} tries: what is between here "
            "and the store changes what is sent, or the file is changed meanwhile"
        )

    def get(self, name: str, local_path: str) -> int:
        for _ in range(TRIES):
            with files.whole(os.path.abspath(local_path)) as partial:
                try:
                    self._download(name, partial)
                except Damaged:  # boto3 has noticed
                    continue
                crc32 = crc32_of(partial)
                if self._has(name, os.path.getsize(partial), crc32):
                    return crc32
        raise Damaged(f"{self._shown(name)} arrives here damaged at each of {TRIES} tries")

    def list(self, folder: str = "") -> Sequence[Entry]:
        prefix = self._folder(folder)
        pages = self._client.get_paginator("list_objects_v2")
        with self._explained(folder):
            return [
                Entry(found["Key"][len(prefix) :], found["Size"], found["LastModified"].timestamp())
                for page in pages.paginate(Bucket=self._bucket, Prefix=prefix, Delimiter="/")
                for found in page.get("Contents", ())
                if found["Key"] != prefix  # a folder that somebody made by hand
            ]

    def delete(self, name: str) -> None:
        with self._explained(name):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def put_bytes(self, name: str, data: bytes, if_absent: bool = False) -> None:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        if if_absent and self._exists(name):  # not every server knows the condition
            raise Exists(f"{self._shown(name)} exists")
        try:
            with self._explained(name):
                self._client.put_object(
                    Bucket=self._bucket, Key=self._key(name), Body=data, **condition
                )
        except Exists:
            with contextlib.suppress(Missing):
                if self.get_bytes(name) == data:
                    return  # an earlier try, whose answer was lost, has made it
            raise

    def get_bytes(self, name: str) -> bytes:
        return self._read(name)

    def copy(self, source: str, target: str) -> None:
        from_where = {"Bucket": self._bucket, "Key": self._key(source)}
        config = {"multipart_threshold": COPIED_AT_ONCE, "multipart_chunksize": 8 * PART}
        with self._explained(source), _transfers(self._client, **config) as transfers:
            transfers.copy(from_where, self._bucket, self._key(target)).result()

    def checksum(self, name: str, by_reading: bool = False) -> int | None:
        head = self._head(name)
        known = _checksum(head)
        if known is None and by_reading:
            known = self._checksum_by_reading(name, head["ContentLength"])
        return known

    def sweep(self, older_than_s: float) -> int:
        now, count = datetime.datetime.now(datetime.timezone.utc), 0
        pages = self._client.get_paginator("list_multipart_uploads")
        with self._explained(""):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._folder("")):
                for upload in page.get("Uploads", ()):
                    if (now - upload["Initiated"]).total_seconds() >= older_than_s:
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        count += 1
        return count

    def _has(self, name: str, size: int, crc32: int, by_reading: bool = False) -> bool:
        """Whether the store has this; where it knows no checksums, this size."""
        head = self._head(name)
        known = _checksum(head)
        if known is None and by_reading:
            known = self._checksum_by_reading(name, head["ContentLength"])
        return head["ContentLength"] == size and known in (None, crc32)

    def _checksum_by_reading(self, name: str, size: int) -> int:
        crc32 = 0
        for start in range(0, size, PART):
            part = self._read(name, Range=f"bytes={start}-{start + PART - 1}")
            crc32 = zlib.crc32(part, crc32)
        return crc32

    def _read(self, name: str, **part: str) -> bytes:
        """boto3 tries again what is not answered, but not what is answered by half."""
        for left in reversed(range(TRIES)):
            try:
                with self._explained(name):
                    answer = self._client.get_object(
                        Bucket=self._bucket, Key=self._key(name), **part
                    )
                    content: bytes = answer["Body"].read()
                    return content
            except (Unreachable, Damaged):
                if left == 0:
                    raise
        raise AssertionError("the last try returns or raises")

    def _download(self, name: str, local_path: str) -> None:
        with self._explained(name), open(local_path, "wb") as file:
            # a file that is open: given a path, it would leave others beside it when it is killed
            with _transfers(self._client) as transfers:
                transfers.download(self._bucket, self._key(name), file).result()

    def _exists(self, name: str) -> bool:
        try:
            self._head(name)
        except Missing:
            return False
        return True

    def _head(self, name: str) -> Any:
        with self._explained(name):
            return self._client.head_object(
                Bucket=self._bucket, Key=self._key(name), ChecksumMode="ENABLED"
            )

    def _key(self, name: str) -> str:
        return join(self._prefix, name)

    def _folder(self, name: str) -> str:
        key = self._key(name)
        return key and key + "/"  # or `run` would have what is in `run2`, too

    def _shown(self, name: str) -> str:
        return join(self.url, name)

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, RetriesExceededError) as error:
            endpoint = self._client.meta.endpoint_url
            raise s3_errors.explain(error, self._shown(name), endpoint) from None
        except OSError as error:
            raise StoreError(f"{error.filename or self._shown(name)}: {error.strerror}") from None


def _client(url: str, patience: Patience) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise StoreError(
            f"{url} needs boto3: pip install 'fairseq_ray_plugin[aws]' on every node"
        ) from None
    config = Config(
        connect_timeout=patience.connect_s,
        read_timeout=patience.read_s,
        retries={"mode": "standard", "total_max_attempts": patience.attempts},
        max_pool_connections=2 * THREADS,
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:  # an endpoint that is none is a ValueError
        raise s3_errors.explain(error, url, None) from None


@contextlib.contextmanager
def _transfers(client: Any, **config: int) -> Iterator[Any]:
    """boto3's classic transfer: CRT's ignores custom endpoints and does not survive a fork.

    In memory are a few buffers: parts are read from the file as they are sent, and what has been
    received waits in a queue of 16 MB at most.
    """
    from boto3.s3.transfer import TransferConfig, create_transfer_manager

    settings = {
        "multipart_threshold": 2 * PART,
        "multipart_chunksize": PART,
        "max_concurrency": THREADS,
        "max_io_queue": 64,
        "io_chunksize": MB // 4,
        **config,
    }
    settings_of_boto3 = TransferConfig(**settings, preferred_transfer_client="classic")
    with create_transfer_manager(client, settings_of_boto3) as transfers:
        yield transfers


def _encoded(crc32: int) -> str:
    return base64.b64encode(crc32.to_bytes(4, "big")).decode()


def _checksum(head: Any) -> int | None:
    """The CRC32 of the whole object; that of an object copied in parts is of the parts' ones."""
    said = head.get("ChecksumCRC32")
    if said is None or "-" in said or head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    return int.from_bytes(base64.b64decode(said), "big")
