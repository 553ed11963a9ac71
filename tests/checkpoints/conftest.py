"""Stores of every kind."""

import os
import uuid

import object_stores
import pytest

from fairseq_ray_plugin.checkpoints import s3
from fairseq_ray_plugin.checkpoints.stores import open_store


@pytest.fixture(scope="session")
def moto_endpoint():
    with object_stores.moto() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def rclone_endpoint(tmp_path_factory):
    with object_stores.rclone(tmp_path_factory.mktemp("rclone")) as endpoint:
        yield endpoint


@pytest.fixture
def aws_environment(monkeypatch, tmp_path):
    """Credentials and an endpoint as users set them, and none of the machine's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in object_stores.KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "PART", 5 << 20)  # the smallest that S3 takes
    return monkeypatch


@pytest.fixture
def bucket(aws_environment):
    """Makes a bucket on a server; returns its name."""

    def make(endpoint):
        import boto3

        name = f"bucket-{uuid.uuid4()}"
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=name)
        return name

    return make


@pytest.fixture(params=["moto", "rclone"])
def endpoint(request, aws_environment):
    return request.getfixturevalue(f"{request.param}_endpoint")


@pytest.fixture(params=["folder", "memory", "moto", "rclone"])
def store(request, tmp_path):
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    if request.param == "memory":
        pytest.importorskip("fsspec")
        return open_store(f"memory://{uuid.uuid4()}")
    request.getfixturevalue("aws_environment").setenv(
        "AWS_ENDPOINT_URL", address := request.getfixturevalue(f"{request.param}_endpoint")
    )
    return open_store(f"s3://{request.getfixturevalue('bucket')(address)}/team/run")
