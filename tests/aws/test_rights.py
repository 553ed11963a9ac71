"""The rights that docs/aws.md lists are those that it takes; a lacking one is said in one line."""

import contextlib
import fnmatch
import json
import re

import pytest
from data import REPOSITORY

from fairseq_ray_plugin.aws import roles

PAGE = (REPOSITORY / "docs" / "aws.md").read_text()
RIGHTS = json.loads(re.search(r"<!-- rights -->\n```json\n(.*?)```", PAGE, re.S)[1])

SERVICES = {"efs": "elasticfilesystem", "service-quotas": "servicequotas"}
"""Where a right is called otherwise than the service."""

ACTIONS = {
    "s3:HeadBucket": "s3:ListBucket",
    "s3:PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "s3:GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
}
"""And than the operation."""

BY_AWS_ALONE = {
    "ec2:CreateTags",  # as parts of making something
    "elasticfilesystem:TagResource",
    "iam:TagRole",
    "ec2:CreateNetworkInterface",  # of mount targets
    "ec2:DeleteNetworkInterface",
}
FOR_RAY = {
    *("ec2:RunInstances", "ec2:StartInstances", "ec2:StopInstances", "ec2:TerminateInstances"),
    *("ec2:CreateKeyPair", "iam:PassRole"),
}

ROUNDS = (("prepare", "--yes"), ("check",), ("clean", "--yes", "--data"))


def listed():
    actions = [statement["Action"] for statement in RIGHTS["Statement"]]
    return {a for each in actions for a in ([each] if isinstance(each, str) else each)}


@contextlib.contextmanager
def with_rights(cloud, rights):
    """AWS refuses what they do not have; yields all that is asked for."""
    from botocore.exceptions import ClientError

    asked = set()

    def look(model, **request):
        service = SERVICES.get(model.service_model.service_name, model.service_model.service_name)
        action = ACTIONS.get(f"{service}:{model.name}", f"{service}:{model.name}")
        asked.add(action)
        if not any(fnmatch.fnmatchcase(action, right) for right in rights):
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "-"}}, model.name)

    services = ("ec2", "efs", "iam", "s3", "service-quotas", "ssm", "sts")
    clients = [cloud.client(service) for service in services]
    for client in clients:
        client.meta.events.register("before-call", look)
    try:
        yield asked
    finally:
        for client in clients:
            client.meta.events.unregister("before-call", look)


def test_the_rights_that_are_listed_are_enough_and_none_is_too_many(cloud):
    asked = set()
    for storage in ((), ("--bucket", "my-runs")):
        with with_rights(cloud, listed()) as used:
            assert [0, 0, 0] == [cloud.aws(*verb, *storage) for verb in ROUNDS]
        asked |= used
    unused = {right for right in listed() if not fnmatch.filter(asked, right)}
    assert BY_AWS_ALONE | FOR_RAY == unused


@pytest.mark.parametrize(
    "right",
    ["ec2:Describe*", "iam:CreateRole", "ssm:GetParameter", "servicequotas:GetServiceQuota"],
)
def test_a_right_that_is_lacking_is_said_in_one_line(right, cloud, capsys):
    with with_rights(cloud, listed() - {right}):
        assert 2 == cloud.aws("prepare", "--yes")
    [line] = capsys.readouterr().err.splitlines()
    operation = right.partition(":")[2].rstrip("*")
    assert re.search(f"AWS refuses {operation}.*rights it takes are listed in docs/aws.md", line)
    assert 0 == cloud.aws("prepare", "--yes") == cloud.aws("check"), "it cannot be completed"


def test_the_head_may_change_no_machine_but_those_of_its_cluster():
    document = roles.of_head("mine", "arn:aws:iam::1:role/mine-worker", "my-runs")
    for statement in document["Statement"]:
        if statement["Resource"] == "*" and "Condition" not in statement:
            assert ["ec2:RunInstances", "ec2:Describe*"] == statement["Action"]
        elif "ec2:TerminateInstances" in statement["Action"]:
            its_own = {"ec2:ResourceTag/ray-cluster-name": "mine"}
            assert {"StringEquals": its_own} == statement["Condition"]
    [passed] = [s for s in document["Statement"] if s["Action"] == "iam:PassRole"]
    assert "arn:aws:iam::1:role/mine-worker" == passed["Resource"]
