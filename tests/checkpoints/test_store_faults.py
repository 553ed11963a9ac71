"""Real faults between us and a store: what was there stays, and what arrives is whole."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from faulty_proxy import CONNECT, DOWN, Fault, FaultyProxy

from fairseq_ray_plugin.checkpoints.published import fetch, publish, published
from fairseq_ray_plugin.checkpoints.s3 import Patience, S3Store
from fairseq_ray_plugin.checkpoints.stores import Damaged, Exists, Unreachable, crc32_of, open_store

MB = 1 << 20
AN_ANSWER = 60
"""More bytes than a "100 Continue", which is none."""
WAIT_S = {"connect_s": 2.0, "read_s": 2.0}
"""A stalled connection costs so much; on a machine that is busy, servers may take a second."""
SOME = Patience(attempts=4, **WAIT_S)
ONCE = Patience(attempts=1, **WAIT_S)


@pytest.fixture
def world(endpoint, bucket, aws_environment, tmp_path):
    """A bucket, two states of three parts, and a store behind a network of a test's choice."""

    class World:
        name = bucket(endpoint)
        old, new = str(tmp_path / "old"), str(tmp_path / "new")

        def behind(self, proxy, patience=SOME):
            aws_environment.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            return S3Store(self.name, "run", patience)

        @property
        def store(self):
            """As others see it."""
            aws_environment.setenv("AWS_ENDPOINT_URL", endpoint)
            return open_store(f"s3://{self.name}/run")

        def found(self):
            """The update of the state that a reader finds, and verifies."""
            (one,) = published(self.store)
            facts = fetch(self.store, one.name, str(tmp_path / "found"))
            assert facts == one.facts
            return facts["update"]

    for path in (World.old, World.new):
        with open(path, "wb") as file:
            file.write(os.urandom(12 * MB))
    world = World()
    publish(world.store, world.old, "checkpoint_last.pt", {"update": 1})
    return world


PASSING = {
    "refused connections": [Fault("refuse", direction=CONNECT)] * 2,
    "503s": [Fault("busy", direction=CONNECT)] * 2,
    "cut in mid-part": [Fault("cut", after=MB), Fault("cut", after=2 * MB)],
    "stalled in mid-part": [Fault("stall", after=MB)],
    "an answer that is lost": [Fault("cut", after=AN_ANSWER, direction=DOWN)],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_what_passes_is_survived_in_a_put(world, endpoint, faults):
    with FaultyProxy(endpoint, faults) as proxy:
        publish(world.behind(proxy), world.new, "checkpoint_last.pt", {"update": 2})
    assert [fault.deed for fault in faults] == proxy.happened
    assert 2 == world.found()


@pytest.mark.parametrize(
    "faults",
    [
        *list(PASSING.values())[:2],
        [Fault("cut", after=MB, direction=DOWN)],
        [Fault("stall", after=MB, direction=DOWN)],
        [Fault("flip", after=MB, direction=DOWN)],
    ],
    ids=["refused connections", "503s", "cut in mid-part", "stalled in mid-part", "a flipped bit"],
)
def test_what_passes_is_survived_in_a_get(world, endpoint, faults, tmp_path, request):
    with FaultyProxy(endpoint, faults) as proxy:
        store = world.behind(proxy)
        if "rclone-a flipped bit" in request.node.name:  # it has no checksums
            with pytest.raises(Damaged):
                fetch(store, "checkpoint_last.pt", str(tmp_path))
        facts = fetch(store, "checkpoint_last.pt", str(tmp_path))
    assert [fault.deed for fault in faults] == proxy.happened
    assert facts["crc32"] == crc32_of(tmp_path / "checkpoint_last.pt") == crc32_of(world.old)


def test_what_a_server_says_has_arrived_damaged_is_sent_again(world, endpoint, tmp_path):
    spoilt = Fault("spoilt", direction=CONNECT)
    with FaultyProxy(endpoint, [spoilt] * 2) as proxy:
        world.behind(proxy).put(world.new, "checkpoint_last.pt")
    assert 2 == len(proxy.happened)
    assert crc32_of(world.new) == world.store.get("checkpoint_last.pt", str(tmp_path / "got"))
    with FaultyProxy(endpoint, [spoilt] * 9) as proxy:
        with pytest.raises(Damaged, match="at each of 3 tries"):
            world.behind(proxy).put(world.new, "checkpoint_last.pt")


def test_what_was_made_by_a_try_whose_answer_was_lost_is_ours(
    moto_endpoint, bucket, aws_environment, monkeypatch
):
    with FaultyProxy(moto_endpoint, PASSING["an answer that is lost"]) as proxy:
        aws_environment.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = S3Store(bucket(moto_endpoint), "run", SOME)
        monkeypatch.setattr(store, "_exists", lambda name: False)  # its answer is not to be cut
        store.put_bytes("claim.json", b"ours", if_absent=True)
        assert (["cut"], b"ours") == (proxy.happened, store.get_bytes("claim.json"))
        with pytest.raises(Exists):
            store.put_bytes("claim.json", b"another's", if_absent=True)


def test_a_bit_that_flips_on_the_way_is_never_taken_for_what_was_sent(world, endpoint):
    with FaultyProxy(endpoint, [Fault("flip", after=MB)]) as proxy:
        publish(world.behind(proxy), world.new, "checkpoint_last.pt", {"update": 2})
    assert ["flip"] == proxy.happened
    assert 2 == world.found()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("refuse", direction=CONNECT),
        Fault("busy", direction=CONNECT),
        Fault("cut", after=MB),
        Fault("stall", after=MB),
    ],
    ids=lambda fault: fault.deed,
)
def test_what_does_not_pass_leaves_the_old_state_and_is_told_in_a_line(world, endpoint, fault):
    with FaultyProxy(endpoint) as proxy:
        store = world.behind(proxy, ONCE)
        proxy.faults += [fault] * 100
        with pytest.raises(Unreachable, match=r"^s3://[^\n]*$"):
            publish(store, world.new, "checkpoint_last.pt", {"update": 2})
        assert {fault.deed} == set(proxy.happened)
    assert 1 == world.found()


def test_where_nobody_listens_it_is_said(world, aws_environment):
    aws_environment.setenv("AWS_ENDPOINT_URL", "http://user:password@127.0.0.1:9")
    with pytest.raises(Unreachable) as caught:
        S3Store(world.name, "run", ONCE).list()
    assert str(caught.value).startswith(f"s3://{world.name}/run: http://127.0.0.1:9 cannot be reac")


def test_a_writer_killed_in_mid_upload_leaves_the_old_state(world, endpoint):
    code = """
        import sys
        from fairseq_ray_plugin.checkpoints import published, s3
        s3.PART = 5 << 20
        store = s3.S3Store(sys.argv[1], "run")
        published.publish(store, sys.argv[2], "checkpoint_last.pt", {"update": 2})
    """
    with FaultyProxy(endpoint, [Fault("stall", after=MB)]) as proxy:
        command = [sys.executable, "-c", textwrap.dedent(code), world.name, world.new]
        environment = {**os.environ, "AWS_ENDPOINT_URL": proxy.endpoint}
        with subprocess.Popen(command, env=environment) as writer:
            assert proxy.stalled.wait(60), "it is in the middle of a part"
            writer.send_signal(signal.SIGKILL)
        assert -signal.SIGKILL == writer.returncode
    assert 1 == world.found()
    assert 1 == world.store.sweep(0), "the parts that had arrived"
    publish(world.store, world.new, "checkpoint_last.pt", {"update": 2})
    assert (2, 0) == (world.found(), world.store.sweep(0))


def test_wherever_the_line_ends_a_whole_state_is_found(world, endpoint):
    with FaultyProxy(endpoint) as proxy:
        publish(world.behind(proxy), world.old, "checkpoint_last.pt", {"update": 1})
    found = []
    for ends_after in [0, 7 * MB, *(proxy.sent - left for left in (4500, 3000, 1500, 1))]:
        with FaultyProxy(endpoint, ends_after=ends_after) as shorter:
            with contextlib.suppress(Unreachable):
                publish(world.behind(shorter, ONCE), world.new, "checkpoint_last.pt", {"update": 2})
        found.append(world.found())
    assert 1 == found[0] and 2 == found[-1]
