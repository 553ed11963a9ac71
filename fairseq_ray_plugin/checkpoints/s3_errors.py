"""What boto3 raises, in one line: what, where, why, and what to do. Only names and codes."""

from __future__ import annotations

from typing import Any

from fairseq_ray_plugin.checkpoints.stores import (
    Damaged,
    Exists,
    Missing,
    StoreError,
    Unreachable,
    Unsupported,
    without_secrets,
)

NO_BUCKET = {"NoSuchBucket"}
NOT_THERE = {"NoSuchKey", "NotFound", "404", "NoSuchVersion"}
DENIED = {"AccessDenied", "Forbidden", "403", "AllAccessDisabled", "AccountProblem"}
WRONG_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthFailure", "InvalidToken"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
ELSEWHERE = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocation"}
THERE = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
SPOILT = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
CANNOT = {"NotImplemented", "501", "MethodNotAllowed", "405"}


def explain(error: Exception, url: str, endpoint: str | None) -> StoreError:
    """The error as one of ours.

    Args:
        url: what it was about.
        endpoint: where the server is; None: not known.
    """
    error = getattr(error, "last_exception", error)  # s3transfer's RetriesExceededError
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return _refused(response, getattr(error, "operation_name", "?"), url)
    kind = type(error).__name__
    if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return StoreError(
            f"{url}: no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE on every node, or give the nodes a role"
        )
    if kind == "ProfileNotFound":
        return StoreError(f"{url}: AWS_PROFILE names a profile that this node does not have")
    if kind == "FlexibleChecksumError":
        return Damaged(f"{url}: what arrives here is not what was put")
    if kind == "ParamValidationError":
        return StoreError(f"{url} is no name that S3 takes: give s3://BUCKET/PREFIX")
    if kind == "ValueError":
        return StoreError(f"{url}: AWS_ENDPOINT_URL is no URL: give https://HOST[:PORT]")
    if kind in ("UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError"):
        return StoreError(f"{url}: the login has expired: aws sso login")
    where = without_secrets(endpoint) if endpoint else "the endpoint"
    if kind == "SSLError":
        return StoreError(
            f"{url}: the certificate of {where} is not trusted: AWS_CA_BUNDLE names a file with "
            "those that are"
        )
    return Unreachable(
        f"{url}: {where} cannot be reached ({kind}): see the network of this node, and "
        "AWS_ENDPOINT_URL where it is not AWS"
    )


def _refused(response: dict[str, Any], operation: str, url: str) -> StoreError:
    code = str(response.get("Error", {}).get("Code", "?"))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in NO_BUCKET:
        return Missing(f"{url}: there is no such bucket: make it, or see AWS_ENDPOINT_URL")
    if code in NOT_THERE:
        return Missing(f"there is no {url}")
    if code in THERE:
        return Exists(f"{url} exists")
    if code in SPOILT:
        return Damaged(f"{url}: what arrived is not what was sent ({code})")
    if code in DENIED:
        return StoreError(f"{url}: {operation} is denied: see docs/stores.md for the rights needed")
    if code in WRONG_KEYS:
        return StoreError(f"{url}: the credentials are not accepted ({code})")
    if code in EXPIRED:
        return StoreError(f"{url}: the credentials have expired ({code})")
    if code in ELSEWHERE:
        return StoreError(f"{url}: the bucket is in another region: set AWS_DEFAULT_REGION")
    if code == "RequestTimeTooSkewed":
        return StoreError(f"{url}: the clock of this node is wrong: set it")
    if code in CANNOT or status == 501:
        return Unsupported(f"{url}: the server does not know {operation}")
    if status >= 500 or code in ("SlowDown", "Throttling", "RequestTimeout", "429"):
        return Unreachable(f"{url}: the server is too busy or out of order ({code}): {operation}")
    return StoreError(f"{url}: the server refuses {operation} ({code})")
