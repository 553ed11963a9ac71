"""A bucket (S3) for checkpoints and data, where no file system is wanted."""

from __future__ import annotations

from typing import Any

from fairseq_ray_plugin.aws.account import Account, AwsError, code_of
from fairseq_ray_plugin.aws.pieces import Standing, is_ours, tags

CLOSED = dict.fromkeys(
    ["BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"], True
)

TIDY = {
    "Rules": [
        {
            "ID": "parts of uploads that were cut off",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        }
    ]
}


class Bucket:
    """Closed to the public. One that was there before is used as it is, and never removed.

    Args:
        cluster: its name.
    """

    def __init__(self, account: Account, name: str, cluster: str) -> None:
        self._s3 = account.client("s3")
        self._region, self._name, self._cluster = account.region, name, cluster
        self._what = f"bucket {name}"

    def look(self) -> Standing:
        if not self._exists():
            return Standing(self._what, missing=("the bucket", "closed to the public"))
        values = {"Bucket": self._name}
        if not self._is_ours():
            return Standing(self._what, self._name, values=values)
        missing = () if self._is_closed() else ("closed to the public",)
        return Standing(self._what, self._name, missing, True, values)

    def make(self) -> None:
        if not self._exists():
            where: dict[str, Any] = {}
            if self._region != "us-east-1":  # the one region that has no name here
                where = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
            self._s3.create_bucket(Bucket=self._name, **where)
            self._s3.put_bucket_tagging(Bucket=self._name, Tagging={"TagSet": tags(self._cluster)})
        if self._is_ours() and not self._is_closed():
            self._s3.put_bucket_lifecycle_configuration(
                Bucket=self._name, LifecycleConfiguration=TIDY
            )
            self._s3.put_public_access_block(
                Bucket=self._name, PublicAccessBlockConfiguration=CLOSED
            )

    def remove(self) -> None:
        from botocore.exceptions import ClientError

        if not self._exists() or not self._is_ours():
            return
        try:
            self._s3.delete_bucket(Bucket=self._name)
        except ClientError as error:
            if code_of(error) != "BucketNotEmpty":
                raise
            raise AwsError(
                f"the {self._what} is not empty, and stays. To lose what is in it: "
                f"aws s3 rm --recursive s3://{self._name}"
            ) from None

    def _exists(self) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._s3.head_bucket(Bucket=self._name)
        except ClientError as error:
            if code_of(error) == "404":
                return False
            if code_of(error) in ("403", "301"):
                raise AwsError(
                    f"the {self._what} is somebody else's, or in another region than "
                    f"{self._region}: take another name"
                ) from None
            raise
        return True

    def _is_ours(self) -> bool:
        from botocore.exceptions import ClientError

        try:
            found = self._s3.get_bucket_tagging(Bucket=self._name)["TagSet"]
        except ClientError as error:
            if code_of(error) == "NoSuchTagSet":
                return False
            raise
        return is_ours(found, self._cluster)

    def _is_closed(self) -> bool:
        from botocore.exceptions import ClientError

        try:
            found = self._s3.get_public_access_block(Bucket=self._name)
        except ClientError as error:
            if code_of(error) == "NoSuchPublicAccessBlockConfiguration":
                return False
            raise
        return bool(found["PublicAccessBlockConfiguration"] == CLOSED)
