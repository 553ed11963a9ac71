"""`aws prepare|check|clean`: made once, found again, completed where it was half made, removed."""

import contextlib
import io
import re
import sys
import urllib.request

import pytest
import yaml

from fairseq_ray_plugin.aws import account, command, network, pieces

IMAGE = "ami-12c6146b"

NOTHING = {
    "groups": set(),
    "file systems": set(),
    "entrances": 0,
    "buckets": set(),
    "roles": set(),
    "profiles": set(),
}
ROLES = {"fairseq-ray-us-west-2-head", "fairseq-ray-us-west-2-worker"}
ALL = {
    "groups": {"fairseq-ray"},
    "file systems": {"fairseq-ray"},
    "entrances": 3,
    "buckets": set(),
    "roles": {*ROLES, "AWSServiceRoleForspot"},
    "profiles": ROLES,
}


def test_nothing_is_made_before_it_is_said_what(cloud, capsys):
    assert 0 == cloud.aws("prepare")
    said = capsys.readouterr().out
    assert NOTHING == cloud.everything() and not cloud.output.exists()
    assert "security group fairseq-ray: not there; to be made: the group, SSH from" in said
    assert "mount targets in us-west-2a, us-west-2b, us-west-2c" in said
    assert "Nothing was changed. With --yes" in said


def test_what_is_needed_is_made_and_the_file_for_ray_is_written(cloud, capsys):
    assert 0 == cloud.aws("prepare", "--yes")
    assert ALL == cloud.everything()
    file = yaml.safe_load(cloud.output.read_text())
    group = cloud.client("ec2").describe_security_groups(GroupNames=["fairseq-ray"])
    [group] = group["SecurityGroups"]
    for node in file["available_node_types"].values():
        assert [group["GroupId"]] == node["node_config"]["SecurityGroupIds"]
        assert IMAGE == node["node_config"]["ImageId"]
    assert "us-west-2a,us-west-2b,us-west-2c" == file["provider"]["availability_zone"]
    lets_in = {
        (
            rule.get("FromPort"),
            *(entry["CidrIp"] for entry in rule["IpRanges"]),
            *(pair["GroupId"] for pair in rule["UserIdGroupPairs"]),
        )
        for rule in group["IpPermissions"]
    }
    assert {(22, "192.0.2.7/32"), (None, group["GroupId"])} == {
        rule if rule[0] == 22 else (None, *rule[1:]) for rule in lets_in
    }
    [system] = cloud.client("efs").describe_file_systems()["FileSystems"]
    assert system["Encrypted"] and system["FileSystemId"] in cloud.output.read_text()
    assert "Next: ray up" in capsys.readouterr().out


def test_what_is_there_is_found_again(cloud, capsys):
    assert 1 == cloud.aws("check")
    assert 0 == cloud.aws("prepare", "--yes")
    written = cloud.output.read_text()
    cloud.output.write_text(written + "# mine\n")
    capsys.readouterr()
    assert 0 == cloud.aws("prepare", "--yes") == cloud.aws("check")
    said = capsys.readouterr().out
    assert "to be made" not in said and "making" not in said
    assert ALL == cloud.everything()
    assert written + "# mine\n" == cloud.output.read_text(), "somebody's work is overwritten"


def test_the_same_command_completes_what_was_half_made(cloud, capsys):
    """Whatever step it was cut off at: each of AWS's makers fails once."""
    for service, operation in (
        ("ec2", "authorize_security_group_ingress"),
        ("efs", "create_mount_target"),
        ("iam", "put_role_policy"),
        ("iam", "create_instance_profile"),
        ("iam", "add_role_to_instance_profile"),
        ("iam", "create_service_linked_role"),
    ):
        with failing(cloud.client(service), operation):
            assert 2 == cloud.aws("prepare", "--yes")
        assert f"AWS refuses {operation}" in capsys.readouterr().err
        assert 1 == cloud.aws("check"), "what is half made passes for whole"
        assert not cloud.output.exists()
    assert 0 == cloud.aws("prepare", "--yes") == cloud.aws("check")
    assert ALL == cloud.everything()


@contextlib.contextmanager
def failing(client, operation):
    from botocore.exceptions import ClientError

    def refuse(**request):
        raise ClientError({"Error": {"Code": "InternalError", "Message": "-"}}, operation)

    setattr(client, operation, refuse)
    try:
        yield
    finally:
        delattr(client, operation)


def test_another_address_is_let_in_as_well(cloud, capsys):
    cloud.aws("prepare", "--yes")
    assert 1 == cloud.aws("check", "--ssh-from", "198.51.100.0/24")
    assert "to be made: SSH from 198.51.100.0/24" in capsys.readouterr().out
    assert 0 == cloud.aws("prepare", "--yes", "--ssh-from", "198.51.100.0/24")
    assert 0 == cloud.aws("check") == cloud.aws("check", "--ssh-from", "198.51.100.0/24")


def test_a_bucket_takes_the_place_of_the_file_system(cloud):
    assert 0 == cloud.aws("prepare", "--yes", "--bucket", "my-runs")
    there = cloud.everything()
    assert ({"my-runs"}, set(), ROLES) == (
        there["buckets"],
        there["file systems"],
        there["profiles"],
    )
    closed = cloud.client("s3").get_public_access_block(Bucket="my-runs")
    assert all(closed["PublicAccessBlockConfiguration"].values())
    policy = cloud.client("iam").get_role_policy(
        RoleName="fairseq-ray-us-west-2-worker", PolicyName="fairseq-ray"
    )
    resources = {s["Resource"] for s in policy["PolicyDocument"]["Statement"]}
    assert {"arn:aws:s3:::my-runs", "arn:aws:s3:::my-runs/*"} == resources
    assert "us-west-2:my-runs/efs" in cloud.output.read_text()
    assert 0 == cloud.aws("check", "--bucket", "my-runs")


def test_all_that_was_made_can_be_removed_but_data_only_when_asked(cloud, capsys):
    cloud.aws("prepare", "--yes")
    assert 0 == cloud.aws("clean")
    assert ALL == cloud.everything()
    assert 0 == cloud.aws("clean", "--yes")
    assert "file system fairseq-ray: stays" in capsys.readouterr().out
    left = cloud.everything()
    assert ({"fairseq-ray"}, {"fairseq-ray"}) == (left["file systems"], left["groups"])
    assert set() == left["profiles"]
    assert 0 == cloud.aws("clean", "--yes", "--data")
    # AWS's own role is of the whole account
    assert NOTHING | {"roles": {"AWSServiceRoleForspot"}} == cloud.everything()
    assert 0 == cloud.aws("clean", "--yes", "--data"), "nothing is there, and that is fine"


def test_a_bucket_with_something_in_it_or_of_others_stays(cloud, capsys):
    cloud.aws("prepare", "--yes", "--bucket", "my-runs")
    cloud.client("s3").put_object(Bucket="my-runs", Key="checkpoint_last.pt", Body=b"-")
    assert 2 == cloud.aws("clean", "--yes", "--data", "--bucket", "my-runs")
    assert "aws s3 rm --recursive s3://my-runs" in capsys.readouterr().err
    cloud.client("s3").create_bucket(
        Bucket="of-others", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}
    )
    cloud.aws("prepare", "--yes", "--bucket", "of-others", "--name", "second")
    assert 0 == cloud.aws("clean", "--yes", "--data", "--bucket", "of-others", "--name", "second")
    assert {"my-runs", "of-others"} == cloud.everything()["buckets"]


def test_nothing_is_removed_under_nodes_that_run(cloud, capsys):
    cloud.aws("prepare", "--yes")
    tags = [{"Key": "ray-cluster-name", "Value": "fairseq-ray"}]
    cloud.client("ec2").run_instances(
        ImageId=IMAGE,
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    assert 2 == cloud.aws("clean", "--yes", "--data")
    assert "ray down" in capsys.readouterr().err
    assert ALL == cloud.everything()


@pytest.mark.parametrize("kind", ["group", "role", "file system"])
def test_what_somebody_else_made_by_the_same_name_is_left_alone(kind, cloud, capsys):
    if kind == "group":
        cloud.client("ec2").create_security_group(GroupName="fairseq-ray", Description="-")
    elif kind == "role":
        name = "fairseq-ray-us-west-2-head"
        cloud.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    else:
        cloud.client("efs").create_file_system(CreationToken="fairseq-ray")
    for verb in ("prepare", "clean"):
        assert 2 == cloud.aws(verb, "--yes")
        assert "was not made here: take another --name" in capsys.readouterr().err


def test_a_quota_that_is_too_small_is_said_with_the_shortfall(cloud, capsys):
    cloud.quotas["L-3819A6DF"] = 8.0
    cloud.aws("prepare", "--yes")
    assert 1 == cloud.aws("check")
    said = capsys.readouterr().out
    assert "quota spot G and VT instances (L-3819A6DF): 32 vCPUs at the most, 8 allowed" in said
    assert "--quota-code L-3819A6DF --desired-value 32" in said
    cloud.quotas["L-3819A6DF"] = 32.0
    assert 0 == cloud.aws("check")


def test_the_price_of_an_hour_is_said(cloud, capsys, monkeypatch):
    from moto.ec2.responses.spot_instances import SpotInstances

    history = SpotInstances.describe_spot_price_history

    def with_prices(self):
        answer = history(self)
        for entry in answer.result["SpotPriceHistory"]:
            factor = {"a": 3, "b": 1, "c": 2}[entry["AvailabilityZone"][-1]]
            entry["SpotPrice"] = str(factor * (0.5 if "2xlarge" in entry["InstanceType"] else 0.9))
        return answer

    monkeypatch.setattr(SpotInstances, "describe_spot_price_history", with_prices)
    cloud.aws("prepare", "--yes")
    said = capsys.readouterr().out
    assert "spot now, dollars an hour: g5.2xlarge 0.5000 in us-west-2b; g5.4xlarge 0.9" in said
    assert "2 workers of the cheapest: 1.00 dollars an hour" in said
    file = yaml.safe_load(cloud.output.read_text())
    assert "us-west-2b,us-west-2c,us-west-2a" == file["provider"]["availability_zone"]


def test_errors_are_one_line_that_says_what_to_do(cloud, capsys, tmp_path):
    def error(*arguments):
        assert 2 == cloud.aws(*arguments)
        [line] = capsys.readouterr().err.splitlines()
        return line

    assert "--ssh-from nonsense" in error("prepare", "--ssh-from", "nonsense")
    broken = tmp_path / "broken.yaml"
    broken.write_text("provider: {type: aws}\n")
    assert f"{broken}: no cluster file" in error("prepare", "--cluster-file", str(broken))
    assert "missing.yaml: No such file" in error("check", "--cluster-file", "missing.yaml")
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text(cloud.template.read_text().replace("{{Bucket}}", "{{Bukket}}"))
    assert "['Bukket']" in error("prepare", "--yes", "--cluster-file", str(unknown))


def test_a_region_without_a_default_network_is_said(cloud, capsys):
    ec2 = cloud.client("ec2")
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    for there in ec2.describe_vpcs()["Vpcs"]:
        ec2.delete_vpc(VpcId=there["VpcId"])
    assert 2 == cloud.aws("prepare")
    assert "aws ec2 create-default-vpc --region us-west-2" in capsys.readouterr().err


def test_without_credentials_it_is_said_where_they_are_looked_for(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(account.AwsError, match="no AWS credentials found"), account.explained():
        account.Account("us-west-2").client("sts").get_caller_identity()


def test_without_boto3_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    with pytest.raises(account.AwsError, match=r"fairseq_ray_plugin\[aws\]"), account.explained():
        pass


def test_all_that_is_made_is_marked(cloud):
    cloud.aws("prepare", "--yes")
    mark = {"Key": pieces.TAG, "Value": "fairseq-ray"}
    [group] = cloud.client("ec2").describe_security_groups(GroupNames=["fairseq-ray"])[
        "SecurityGroups"
    ]
    [system] = cloud.client("efs").describe_file_systems()["FileSystems"]
    found = [cloud.client("iam").get_role(RoleName=name)["Role"] for name in ROLES]
    for made in (group, system, *found):
        assert mark in made["Tags"]


def test_the_address_of_the_caller_is_asked_for(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"192.0.2.9\n"))
    assert "192.0.2.9/32" == network.address_of_caller()


def test_the_verbs_explain_themselves(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = capsys.readouterr().out
    assert re.search("prepare.*make what is missing", said)
    assert "Nothing is changed without --yes" in said
