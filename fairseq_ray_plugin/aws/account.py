"""One account in one region, and what AWS says no to, in one line."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


class AwsError(Exception):
    """Something cannot be had from AWS; one line that says what to do."""


CREDENTIALS = {
    "AuthFailure",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "InvalidAccessKeyId",
}
DENIED = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "403", "Forbidden"}


class Account:
    """Clients of AWS's services, made when they are first asked for.

    Args:
        region: as in `us-west-2`.
    """

    def __init__(self, region: str) -> None:
        import boto3

        self.region = region
        self._session = boto3.session.Session(region_name=region)

    @functools.cache  # noqa: B019 - an account lives as long as the command
    def client(self, service: str) -> Any:
        """boto3's client of this service."""
        return self._session.client(service)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """What boto3 raises inside is an AwsError instead; and so is that it is not installed."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise AwsError("this needs boto3: pip install 'fairseq_ray_plugin[aws]'") from None
    try:
        yield
    except ClientError as error:
        raise AwsError(_refusal(error)) from None
    except BotoCoreError as error:
        raise AwsError(_trouble(error)) from None


def code_of(error: Any) -> str:
    """The code in a ClientError."""
    return str(error.response.get("Error", {}).get("Code", "?"))


def _refusal(error: Any) -> str:
    code, operation = code_of(error), error.operation_name
    if code in CREDENTIALS:
        return f"AWS does not accept the credentials ({code}): see ~/.aws/credentials, AWS_PROFILE"
    if code in DENIED:
        return f"AWS refuses {operation} ({code}): the rights it takes are listed in docs/aws.md"
    message = error.response.get("Error", {}).get("Message", "")
    return f"AWS refuses {operation}: {message} ({code})"


def _trouble(error: Any) -> str:
    kind = type(error).__name__
    if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return "no AWS credentials found: run aws configure, or set AWS_PROFILE"
    if kind == "ProfileNotFound":
        return "AWS_PROFILE names a profile that is not in ~/.aws"
    if kind in ("EndpointConnectionError", "ConnectTimeoutError", "InvalidRegionError"):
        return f"AWS cannot be reached ({kind}): see the network, and --region"
    return f"{kind}: {error}"
