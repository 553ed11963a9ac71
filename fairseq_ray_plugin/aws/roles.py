"""What the machines themselves may do: roles, by which nodes have credentials without keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fairseq_ray_plugin.aws.account import Account, AwsError, code_of
from fairseq_ray_plugin.aws.pieces import Standing, is_ours, tags

POLICY = "fairseq-ray"

FOR_MACHINES = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": "ec2.amazonaws.com"},
            "Action": "sts:AssumeRole",
        }
    ],
}

SPOT = "spot.amazonaws.com"

Document = dict[str, Any]


def of_worker(bucket: str | None) -> Document | None:
    """What a worker may do; None: nothing."""
    if bucket is None:
        return None
    return {"Version": "2012-10-17", "Statement": _store(bucket)}


def of_head(cluster: str, worker_role: str, bucket: str | None) -> Document:
    """What the head may do: start nodes and end those of its cluster, for Ray's autoscaler.

    Args:
        worker_role: its ARN; the head hands it to the workers that it starts.
    """
    its_own = {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": cluster}}
    at_start = {"StringEquals": {"ec2:CreateAction": "RunInstances"}}
    statements: list[Document] = [
        {"Effect": "Allow", "Action": ["ec2:RunInstances", "ec2:Describe*"], "Resource": "*"},
        # who may mark any machine may end any that is marked
        {"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "*", "Condition": at_start},
        {
            "Effect": "Allow",
            "Action": [
                *("ec2:CreateTags", "ec2:TerminateInstances"),
                *("ec2:StopInstances", "ec2:StartInstances"),
            ],
            "Resource": "*",
            "Condition": its_own,
        },
        {"Effect": "Allow", "Action": "iam:PassRole", "Resource": worker_role},
    ]
    if bucket is not None:
        statements += _store(bucket)
    return {"Version": "2012-10-17", "Statement": statements}


def _store(bucket: str) -> list[Document]:
    """As docs/stores.md lists it, for all runs in the bucket."""
    arn = f"arn:aws:s3:::{bucket}"
    return [
        {
            "Effect": "Allow",
            "Action": ["s3:ListBucket", "s3:ListBucketMultipartUploads"],
            "Resource": arn,
        },
        {
            "Effect": "Allow",
            "Action": [
                *("s3:GetObject", "s3:PutObject", "s3:DeleteObject"),
                "s3:AbortMultipartUpload",
            ],
            "Resource": f"{arn}/*",
        },
    ]


class Role:
    """A role of machines, with the instance profile by which they have it, of the same name.

    Args:
        policy: what it may do; None: nothing.
        placeholder: of the cluster file, that takes the profile's name.
    """

    def __init__(
        self,
        account: Account,
        cluster: str,
        name: str,
        policy: Document | None,
        placeholder: str,
    ) -> None:
        self._iam = account.client("iam")
        self._cluster, self.name, self._policy = cluster, name, policy
        self._placeholder = placeholder
        self._what = f"role {name}"

    def look(self) -> Standing:
        role = self._role()
        missing = [] if role is not None else ["the role"]
        if self._policy_there() != self._policy:
            missing.append("its rights")
        profile = self._profile()
        if profile is None:
            missing.append("its instance profile")
        elif not profile["Roles"]:
            missing.append("the role in its instance profile")
        there = role is not None or profile is not None
        values = {self._placeholder: self.name}
        return Standing(self._what, self.name if there else "", tuple(missing), there, values)

    def make(self) -> None:
        if self._role() is None:
            self._iam.create_role(
                RoleName=self.name,
                AssumeRolePolicyDocument=json.dumps(FOR_MACHINES),
                Tags=tags(self._cluster),
            )
        if self._policy_there() != self._policy:
            self._set_policy()
        if self._profile() is None:
            self._iam.create_instance_profile(InstanceProfileName=self.name)
        profile = self._profile()
        assert profile is not None
        if not profile["Roles"]:
            self._iam.add_role_to_instance_profile(
                InstanceProfileName=self.name, RoleName=self.name
            )

    def remove(self) -> None:
        role, profile = self._role(), self._profile()
        if profile is not None:
            for inside in profile["Roles"]:
                self._iam.remove_role_from_instance_profile(
                    InstanceProfileName=self.name, RoleName=inside["RoleName"]
                )
            self._iam.delete_instance_profile(InstanceProfileName=self.name)
        if role is not None:
            if self._policy_there() is not None:
                self._iam.delete_role_policy(RoleName=self.name, PolicyName=POLICY)
            self._iam.delete_role(RoleName=self.name)

    def _set_policy(self) -> None:
        if self._policy is None:
            self._iam.delete_role_policy(RoleName=self.name, PolicyName=POLICY)
            return
        self._iam.put_role_policy(
            RoleName=self.name, PolicyName=POLICY, PolicyDocument=json.dumps(self._policy)
        )

    def _role(self) -> Mapping[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            role: Mapping[str, Any] = self._iam.get_role(RoleName=self.name)["Role"]
        except ClientError as error:
            if code_of(error) == "NoSuchEntity":
                return None
            raise
        if not is_ours(role.get("Tags"), self._cluster):
            raise AwsError(f"there is a {self._what} that was not made here: take another --name")
        return role

    def _profile(self) -> Mapping[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            answer = self._iam.get_instance_profile(InstanceProfileName=self.name)
        except ClientError as error:
            if code_of(error) == "NoSuchEntity":
                return None
            raise
        profile: Mapping[str, Any] = answer["InstanceProfile"]
        return profile

    def _policy_there(self) -> Document | None:
        from botocore.exceptions import ClientError

        try:
            answer = self._iam.get_role_policy(RoleName=self.name, PolicyName=POLICY)
        except ClientError as error:
            if code_of(error) == "NoSuchEntity":
                return None
            raise
        document: Document = answer["PolicyDocument"]
        return document


class SpotRole:
    """AWS's own role for spot instances: without it an account's first one is refused.

    One for the whole account, which other clusters may use: it is never removed.
    """

    def __init__(self, account: Account) -> None:
        self._iam = account.client("iam")

    def look(self) -> Standing:
        what = "AWS's role for spot instances"
        found = self._iam.list_roles(PathPrefix=f"/aws-service-role/{SPOT}/")["Roles"]
        if not found:
            return Standing(what, missing=("the role",))
        return Standing(what, found[0]["RoleName"])

    def make(self) -> None:
        if not self.look().id:
            self._iam.create_service_linked_role(AWSServiceName=SPOT)

    def remove(self) -> None:
        pass
