"""lm-cluster.yaml is what today's Ray accepts, and makes the nodes it says, on a simulated AWS."""

import copy
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")

CHECKOUT = Path(__file__).resolve().parent.parent
CLUSTER_FILE = CHECKOUT / "examples" / "roberta" / "lm-cluster.yaml"
REGION = "us-west-2"
PLACEHOLDERS = {"SecurityGroupId", "FileSystemId", "ImageId"}


def cluster_config(**values: str) -> dict:
    """The file as a user has it after replacing the placeholders, filled in by Ray."""
    from ray.autoscaler._private.util import prepare_config

    text = CLUSTER_FILE.read_text()
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    return prepare_config(yaml.safe_load(text))


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """A simulated AWS account, with an image and a security group of its default network."""
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes a key pair under ~/.ssh
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # bootstrap waits for IAM
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        ec2 = boto3.client("ec2", REGION)
        network = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="mine", Description="-", VpcId=network)
        yield {
            "SecurityGroupId": group["GroupId"],
            "FileSystemId": "fs-12345678",
            "ImageId": ec2.describe_images()["Images"][0]["ImageId"],
        }


def test_ray_accepts_the_file():
    from ray.autoscaler._private.util import validate_config

    config = cluster_config()
    validate_config(config)
    assert config["head_node_type"] == "head"
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    workers = config["available_node_types"]["spot_gpu"]
    assert (workers["min_workers"], workers["max_workers"]) == (1, 2)
    assert workers["resources"]["GPU"] == 1


def test_ray_refuses_a_field_of_2019():
    """Guards the test above: Ray's validation still looks at field names."""
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(Exception, match="initial_workers"):
        validate_config(cluster_config() | {"initial_workers": 1})


def test_the_placeholders_are_the_three_that_the_readme_explains():
    settings = re.sub(r"(?m)^\s*#.*$", "", CLUSTER_FILE.read_text())
    assert set(re.findall(r"\{\{(\w+)\}\}", settings)) == PLACEHOLDERS
    readme = (CLUSTER_FILE.parent / "README.md").read_text()
    assert set(re.findall(r"\{\{(\w+)\}\}", readme)) == PLACEHOLDERS


def test_the_simulated_cluster_has_an_on_demand_head_and_spot_workers(aws):
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    ready = bootstrap_aws(copy.deepcopy(cluster_config(**aws)))
    provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
    node_types = ready["available_node_types"]
    for kind, name in (("head", "head"), ("worker", "spot_gpu")):
        tags = {
            "ray-node-type": kind,
            "ray-user-node-type": name,
            "ray-node-name": name,
            "ray-node-status": "up-to-date",
        }
        provider.create_node(node_types[name]["node_config"], tags, 1)

    instances = {}
    for reservation in boto3.client("ec2", REGION).describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            instances[tags["ray-user-node-type"]] = instance
    assert set(instances) == {"head", "spot_gpu"}
    assert instances["spot_gpu"]["InstanceLifecycle"] == "spot"
    assert instances["spot_gpu"]["InstanceType"] == "g5.2xlarge"
    assert instances["head"].get("InstanceLifecycle", "on-demand") != "spot"
    for instance in instances.values():
        groups = [group["GroupId"] for group in instance["SecurityGroups"]]
        assert groups == [aws["SecurityGroupId"]]


def test_every_mounted_file_is_in_the_checkout():
    for local in cluster_config()["file_mounts"].values():
        assert (CHECKOUT / local).exists(), f"file_mounts names {local}, which is not there"


def test_set_up_commands_are_shell():
    config = cluster_config()
    commands = [
        command for key, value in config.items() if key.endswith("_commands") for command in value
    ]
    assert len(commands) > 6
    for command in commands:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert checked.returncode == 0, f"{command}: {checked.stderr}"


def test_the_file_system_is_mounted_once_however_often_the_command_runs(tmp_path):
    """With a fake mount: the first run mounts, the second leaves what is mounted alone."""
    fakes = tmp_path / "bin"
    fakes.mkdir()
    log = tmp_path / "mounted"
    for name, script in {
        "sudo": 'exec "$@"',
        "mountpoint": f'test -s "{log}"',
        "mount": f'echo "$@" >> "{log}"',
    }.items():
        (fakes / name).write_text(f"#!/bin/sh\n{script}\n")
        (fakes / name).chmod(0o755)
    config = cluster_config(FileSystemId="fs-12345678")
    [command] = [command for command in config["setup_commands"] if "nfs4 -o" in command]
    environment = os.environ | {"HOME": str(tmp_path), "PATH": f"{fakes}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", "-c", command], env=environment, check=True)
    [mounted] = log.read_text().splitlines()
    assert mounted.endswith(f"fs-12345678.efs.us-west-2.amazonaws.com:/ {tmp_path}/efs")
