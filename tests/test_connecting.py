"""Ray's token, which a local Ray leaves in ~/.ray, and from then on every head wants."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import data
import psutil
import pytest
import ray

from fairseq_ray_plugin import connecting

TOKEN = "1" * 64
CONNECT = """
import sys, time, ray
from fairseq_ray_plugin.connecting import connect
begin = time.monotonic()
try:
    print(connect(sys.argv[1]), len(ray.nodes()))
except ConnectionError as error:
    print(error)
print(time.monotonic() - begin)
"""


def as_user(home: Path, **environment) -> dict[str, str]:
    there = {k: v for k, v in data.environment().items() if not k.startswith("RAY_AUTH")}
    return {**there, "HOME": str(home), **environment}


def with_token(home: Path, token: str) -> Path:
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(token)
    return home


@pytest.fixture
def head_with_token(tmp_path):
    """The address of a cluster that was started by a user who has a token."""
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    head = subprocess.Popen(
        [
            ray,
            "start",
            "--head",
            "--port=0",
            "--num-cpus=0",
            "--include-dashboard=false",
            "--block",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=as_user(with_token(tmp_path / "head", TOKEN)),
    )
    try:
        line = next(line for line in head.stdout if "--address='" in line)
        yield line.split("'")[1]
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (psutil.Process(head.pid), *psutil.Process(head.pid).children(True)):
                process.kill()
        head.wait()


def test_a_cluster_that_wants_rays_token_gets_it_or_the_user_is_told(head_with_token, tmp_path):
    def connect(home, **environment):
        result = subprocess.run(
            [sys.executable, "-c", CONNECT, head_with_token],
            capture_output=True,
            text=True,
            env=as_user(home, **environment),
        )
        assert "Traceback" not in result.stderr, result.stderr
        said, seconds = result.stdout.splitlines()
        return said, float(seconds)

    user = with_token(tmp_path / "user", TOKEN)
    assert connect(user)[0] == f"Ray cluster at {head_with_token} 1"
    strangers = (
        (tmp_path / "nobody", {}),
        (tmp_path / "nobody", {"RAY_AUTH_MODE": "token"}),
        (with_token(tmp_path / "other", "2" * 64), {}),
        (user, {"RAY_AUTH_MODE": "disabled"}),
    )
    for home, environment in strangers:
        said, seconds = connect(home, **environment)
        assert said.startswith(f"--ray-address {head_with_token}: this cluster wants a token")
        assert seconds < 2


def test_a_local_ray_that_does_not_start_is_told_in_a_line(monkeypatch):
    def init(**options):
        raise Exception("The current node timed out during startup.\nThis could")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConnectionError, match="^a local Ray could not be .*during startup.$"):
        connecting.connect("local")


@pytest.mark.parametrize("may_start", [False, True])
def test_a_cluster_that_was_killed_is_not_waited_for(may_start, monkeypatch):
    from ray._private import services

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "get_ray_address_from_environment", lambda *where: address)
    started = []
    monkeypatch.setattr(ray, "init", lambda **options: started.append(options["address"]))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setenv("RAY_worker_niceness", "0")
    if may_start:
        assert "local Ray on this machine, 2 CPUs" == connecting.connect("auto")
    else:
        with pytest.raises(ConnectionError, match="no Ray cluster is found here"):
            connecting.connect("auto", may_start=False)
    assert started == ["local"] * may_start
