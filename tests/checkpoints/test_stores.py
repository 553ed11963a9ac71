"""Every store does the same."""

import builtins
import os
import subprocess
import sys
import threading
import time
import traceback
import zlib
from concurrent.futures import ThreadPoolExecutor

import object_stores
import pytest

from fairseq_ray_plugin.checkpoints import s3
from fairseq_ray_plugin.checkpoints.stores import (
    Exists,
    Missing,
    StoreError,
    Unreachable,
    Unsupported,
    crc32_of,
    is_url,
    open_store,
    without_secrets,
)


@pytest.fixture
def file(tmp_path):
    def make(content, name="file"):
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("size", [0, 1, 12 << 20])
def test_what_is_put_is_got(store, file, tmp_path, size):
    content = os.urandom(size)
    store.put(file(content), "checkpoint_last.pt")
    crc32 = store.get("checkpoint_last.pt", str(tmp_path / "got"))
    assert (content, zlib.crc32(content)) == ((tmp_path / "got").read_bytes(), crc32)
    assert store.checksum("checkpoint_last.pt") in (None, zlib.crc32(content))
    assert store.checksum("checkpoint_last.pt", by_reading=True) == zlib.crc32(content)


@pytest.mark.parametrize("store", ["rclone"], indirect=True)  # AWS takes no parts below 5 MiB
def test_a_file_of_fifty_parts_is_put_and_got(store, file, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "PART", 1 << 18)
    path = file(os.urandom(50 << 18))
    store.put(path, "checkpoint_last.pt")  # read back, too: there are no checksums
    assert crc32_of(path) == store.get("checkpoint_last.pt", str(tmp_path / "got"))


def test_what_is_put_again_is_new_and_what_is_deleted_is_gone(store, file, tmp_path):
    store.put(file(b"old"), "a.pt")
    store.put(file(b"newer"), "a.pt")
    store.get("a.pt", str(tmp_path / "got"))
    assert b"newer" == (tmp_path / "got").read_bytes()
    store.delete("a.pt")
    store.delete("a.pt")
    assert [] == list(store.list())
    with pytest.raises(Missing, match=r"^there is no .*a\.pt$"):
        store.get("a.pt", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_list_is_of_one_folder_and_says_sizes_and_times(store, file):
    assert [] == list(store.list()) == list(store.list("manifests"))
    before = time.time()
    store.put(file(b"state"), "b.pt")
    store.put(file(b"states"), "a.pt")
    store.put_bytes("manifests/a.pt.json", b"{}")
    assert [("a.pt", 6), ("b.pt", 5)] == [(found.name, found.size) for found in store.list()]
    assert ["a.pt.json"] == [found.name for found in store.list("manifests")]
    assert all(abs(found.time - before) < 60 for found in store.list())


def test_a_copy_is_another_object(store, file, tmp_path):
    store.put(file(b"one"), "a.pt")
    store.copy("a.pt", "b.pt")
    store.put(file(b"two"), "a.pt")
    store.get("b.pt", str(tmp_path / "got"))
    assert b"one" == (tmp_path / "got").read_bytes()


def test_small_objects_are_replaced_or_made_if_absent(store):
    store.put_bytes("claim.json", b"1")
    store.put_bytes("claim.json", b"2")
    with pytest.raises(Exists, match=r"claim\.json exists$"):
        store.put_bytes("claim.json", b"3", if_absent=True)
    assert b"2" == store.get_bytes("claim.json")
    store.put_bytes("other.json", b"4", if_absent=True)
    assert b"4" == store.get_bytes("other.json")
    with pytest.raises(Missing):
        store.get_bytes("none.json")


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_where_fsspec_has_no_such_condition_what_is_there_stays_all_the_same(store, monkeypatch):
    pipe_file = store._fs.pipe_file

    def unconditional(path, value, mode="overwrite"):
        if mode == "create":
            raise NotImplementedError
        pipe_file(path, value)

    monkeypatch.setattr(store._fs, "pipe_file", unconditional)
    store.put_bytes("claim.json", b"1", if_absent=True)
    with pytest.raises(Exists):
        store.put_bytes("claim.json", b"2", if_absent=True)
    assert b"1" == store.get_bytes("claim.json")


@pytest.mark.parametrize("store", ["folder", "moto"], indirect=True)  # the others promise nothing
def test_of_writers_that_meet_one_succeeds(store):
    made, barrier = [], threading.Barrier(8)

    def claim(number):
        barrier.wait()
        try:
            store.put_bytes("claim.json", str(number).encode(), if_absent=True)
            made.append(number)
        except Exists:
            pass

    writers = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [int(store.get_bytes("claim.json"))] == made


def test_a_thousand_and_one_are_listed(store):
    names = [f"checkpoint_1_{number:04}.pt" for number in range(1001)]
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda name: store.put_bytes(name, b""), names))
    assert names == [found.name for found in store.list()]


def test_unfinished_puts_are_swept_by_their_age(rclone_endpoint, bucket, aws_environment, tmp_path):
    aws_environment.setenv("AWS_ENDPOINT_URL", rclone_endpoint)  # with moto, all are of 2010
    name = bucket(rclone_endpoint)
    store, other = open_store(f"s3://{name}/run"), open_store(f"s3://{name}/run2")
    for key in ("run/a.pt", "run/b.pt", "run2/a.pt"):
        store._client.create_multipart_upload(Bucket=name, Key=key)
    assert (0, 2, 0, 1) == (store.sweep(3600), store.sweep(0), store.sweep(0), other.sweep(0))
    folder = open_store(str(tmp_path / "store"))
    folder.put_bytes("whole.json", b"")
    (tmp_path / "store" / "a.pt.77.tmp").write_bytes(b"half")
    assert (0, 1) == (folder.sweep(3600), folder.sweep(0))
    assert ["whole.json"] == os.listdir(tmp_path / "store")


def test_what_is_an_url_and_what_of_it_is_shown():
    assert is_url("s3://bucket") and is_url("gs://bucket/run")
    assert not is_url("checkpoints/s3:") and not is_url("/data/a://b")
    assert "ftp://host:21/x" == without_secrets("ftp://me:password@host:21/x?sig=secret")


def refusal(action):
    with pytest.raises(StoreError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    traceback_in_a_log = "".join(traceback.format_exception(caught.value))
    assert not any(secret in traceback_in_a_log for secret in object_stores.KEYS.values())
    return caught.value


def test_a_store_that_cannot_be_used_says_why_and_what_to_do(
    rclone_endpoint, aws_environment, bucket
):
    aws_environment.setenv("AWS_ENDPOINT_URL_S3", rclone_endpoint)
    name = bucket(rclone_endpoint)
    assert "names no bucket" in str(refusal(lambda: open_store("s3:///run")))
    assert "s3://not-there/x: there is no such bucket" in str(
        refusal(lambda: open_store("s3://not-there/x").list())
    )
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert "not accepted (SignatureDoesNotMatch)" in str(refusal(open_store(f"s3://{name}").list))
    aws_environment.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials found: set AWS" in str(refusal(lambda: open_store("s3://x").list()))
    aws_environment.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials found: set AWS" in str(refusal(lambda: open_store("s3://x").list()))
    aws_environment.setenv("AWS_PROFILE", "none")
    assert "AWS_PROFILE" in str(refusal(lambda: open_store("s3://x").list()))
    aws_environment.delenv("AWS_PROFILE")
    aws_environment.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
    assert "AWS_ENDPOINT_URL is no URL" in str(refusal(lambda: open_store("s3://x")))
    assert "fsspec knows no nonsense://" in str(refusal(lambda: open_store("nonsense://x")))


@pytest.mark.parametrize(
    ("code", "status", "kind", "text"),
    [
        ("AccessDenied", 403, StoreError, "PutObject is denied: see docs/stores.md"),
        ("403", 403, StoreError, "PutObject is denied"),
        ("ExpiredToken", 400, StoreError, "have expired"),
        ("PermanentRedirect", 301, StoreError, "set AWS_DEFAULT_REGION"),
        ("RequestTimeTooSkewed", 403, StoreError, "clock"),
        ("SlowDown", 503, Unreachable, "too busy"),
        ("InternalError", 500, Unreachable, "out of order"),
        ("NotImplemented", 501, Unsupported, "does not know PutObject"),
        ("InvalidStorageClass", 400, StoreError, "refuses PutObject (InvalidStorageClass)"),
    ],
)
def test_what_a_server_says_is_understood(code, status, kind, text):
    from botocore.exceptions import ClientError

    from fairseq_ray_plugin.checkpoints.s3_errors import explain

    response = {
        "Error": {"Code": code, "Message": "AKIA of-nobody-s-concern", "AWSAccessKeyId": "AKIA"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = explain(ClientError(response, "PutObject"), "s3://bucket/run", None)
    assert kind is type(error) and text in str(error) and str(error).startswith("s3://bucket/run")
    assert "AKIA" not in str(error)


def test_a_package_that_is_missing_is_named(monkeypatch):
    original = builtins.__import__

    def without(*names):
        def missing(name, *args, **kwargs):
            if name.split(".")[0] in names:
                raise ImportError(name)
            return original(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", missing)

    without("boto3")
    text = str(refusal(lambda: open_store("s3://bucket/run")))
    assert "s3://bucket/run needs boto3: pip install 'fairseq_ray_plugin[aws]'" in text
    without("fsspec")
    assert "pip install 'fairseq_ray_plugin[stores]'" in str(refusal(lambda: open_store("gs://b")))
    monkeypatch.undo()
    pytest.importorskip("fsspec")
    without("gcsfs")
    assert "gs://b needs a package on every node: " in str(refusal(lambda: open_store("gs://b")))


def test_neither_ray_nor_boto3_is_loaded_for_a_folder():
    code = (
        "import sys; from fairseq_ray_plugin.checkpoints import passage, stores; "
        "stores.open_store('.').list(); print({'boto3', 'fsspec', 'torch', 'ray'} & {*sys.modules})"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ("set()", "") == (output.stdout.strip(), output.stderr)
