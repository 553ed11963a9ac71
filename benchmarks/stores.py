"""How fast checkpoints go to a store and come back, beside plain boto3: alternately, medians.

    python benchmarks/stores.py [MIB] [ROUNDS]

Against a server on this machine (rclone), so that both are bound by it and by the processors: what
is compared is what verifying costs, not what a network carries. FAIRSEQ_RAY_BUCKET names a bucket
of a real server instead.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3

from fairseq_ray_plugin.checkpoints.published import fetch, publish
from fairseq_ray_plugin.checkpoints.stores import open_store

KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark-of-stores"}


def main(size_mib: int = 512, rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory() as folder, server(folder) as bucket:
        state, back = f"{folder}/state.pt", f"{folder}/back"
        with open(state, "wb") as file:
            for _ in range(size_mib):
                file.write(os.urandom(1 << 20))
        client, store = boto3.client("s3"), open_store(f"s3://{bucket}/ours")
        over_tls: Any = open_store(f"s3://{bucket}/ours")
        over_tls._by_tls = True  # or what a server without checksums has got is read back
        contestants: dict[str, Callable[[], object]] = {
            "boto3 upload_file": lambda: client.upload_file(state, bucket, "plain.pt"),
            "put, as over TLS": lambda: over_tls.put(state, "checkpoint_last.pt"),
            "put, read back": lambda: store.put(state, "checkpoint_last.pt"),
            "publish, read back": lambda: publish(store, state, "checkpoint_last.pt", {}),
            "boto3 download_file": lambda: client.download_file(bucket, "plain.pt", back),
            "fetch, verified": lambda: fetch(store, "checkpoint_last.pt", folder),
        }
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, act in contestants.items():
                start = time.perf_counter()
                act()
                times[name].append(time.perf_counter() - start)
        for name, taken in times.items():
            speed = size_mib / statistics.median(taken)
            print(f"{name:25} {speed:6.0f} MiB/s  ({min(taken):.2f} to {max(taken):.2f} s)")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process: {peak_mb:.0f} MiB, load: {os.getloadavg()[0]:.1f}")


@contextlib.contextmanager
def server(folder: str) -> Iterator[str]:
    """A bucket on a server, which the environment names."""
    if "FAIRSEQ_RAY_BUCKET" in os.environ:
        yield os.environ["FAIRSEQ_RAY_BUCKET"]
        return
    os.environ.update(KEYS)
    Path(folder, "served", "bucket").mkdir(parents=True)
    program = os.path.join(os.path.dirname(sys.executable), "rclone")
    command = [program, "serve", "s3", "--config=", "--addr=127.0.0.1:0"]
    command += [f"--auth-key={','.join(KEYS.values())}", f"{folder}/served"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            found = re.search(r"http://[^/]+", process.stderr.readline() if process.stderr else "")
            assert found is not None, "rclone does not say where it is"
            os.environ["AWS_ENDPOINT_URL"] = found.group()
            yield "bucket"
        finally:
            process.terminate()
            process.communicate()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
