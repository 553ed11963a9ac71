"""A simulated AWS account (moto), with the image and the quotas that it does not know itself."""

import functools

import pytest
from data import REPOSITORY

from fairseq_ray_plugin.aws import command, image
from fairseq_ray_plugin.aws.account import Account

REGION = "us-west-2"
TEMPLATE = REPOSITORY / "examples" / "roberta" / "lm-cluster.yaml"
IMAGE = "ami-12c6146b"  # one of moto's


@functools.cache
def client(service):
    """boto3 reads megabytes of descriptions for each session: one serves all tests."""
    import boto3

    return boto3.client(service, REGION)


class Cloud:
    """The account, and the command as a user gives it."""

    def __init__(self, folder):
        self.output = folder / "lm-cluster.yaml"
        self.template = TEMPLATE
        self.quotas = {"L-3819A6DF": 64.0, "L-DB2E81BA": 64.0, "L-1216C47A": 64.0}
        self.client, self.region = client, REGION

    def aws(self, verb, *arguments):
        """Returns the exit code."""
        output = ("--output", str(self.output)) if verb == "prepare" else ()
        place = ("--region", REGION, "--cluster-file", str(self.template))
        return command.main([verb, *place, "--ssh-from", "192.0.2.7", *output, *arguments])

    def everything(self):
        """The names of all that the command may have made, by kind."""
        groups = self.client("ec2").describe_security_groups()["SecurityGroups"]
        systems = self.client("efs").describe_file_systems()["FileSystems"]
        iam = self.client("iam")
        return {
            "groups": {group["GroupName"] for group in groups} - {"default"},
            "file systems": {system["Name"] for system in systems},
            "entrances": sum(system["NumberOfMountTargets"] for system in systems),
            "buckets": {bucket["Name"] for bucket in self.client("s3").list_buckets()["Buckets"]},
            "roles": {role["RoleName"] for role in iam.list_roles()["Roles"]},
            "profiles": {
                profile["InstanceProfileName"]
                for profile in iam.list_instance_profiles()["InstanceProfiles"]
                if profile["Roles"]
            },
        }


@pytest.fixture
def cloud(monkeypatch, tmp_path):
    moto = pytest.importorskip("moto")
    from moto.servicequotas.exceptions import NoSuchResource
    from moto.servicequotas.models import ServiceQuotasBackend
    from moto.ssm.models import Parameter, ssm_backends

    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray writes a key pair
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with moto.mock_aws():
        cloud = Cloud(tmp_path)

        def get_service_quota(self, service_code, quota_code):
            if quota_code not in cloud.quotas:
                raise NoSuchResource
            return {"QuotaCode": quota_code, "Value": cloud.quotas[quota_code]}

        monkeypatch.setattr(ServiceQuotasBackend, "get_service_quota", get_service_quota)
        monkeypatch.setattr(Account, "client", lambda account, service: client(service))
        account = client("sts").get_caller_identity()["Account"]
        ssm_backends[account][REGION]._parameters[image.NEWEST].append(
            Parameter(account, image.NEWEST, IMAGE, "String", "", None, None, 0, 1, "text")
        )
        yield cloud
