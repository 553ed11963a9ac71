"""The notice to a spot instance arrives, whatever the metadata service does meanwhile."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from metadata import MetadataServer

from fairseq_ray_plugin.worker import notices


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(notices, "POLL_S", 0.01)
    with MetadataServer() as server:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        yield server


@pytest.fixture
def watch(server):
    """A watch of this machine, begun; its result is the notice."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: asyncio.run(asyncio.wait_for(notices.spot_notice(), 20)))


def test_a_notice_says_why_and_how_much_time_is_left(server, watch):
    server.until_asked("GET", 404)
    assert not watch.done()
    server.announce(120)
    notice = watch.result()
    assert "AWS will terminate this spot instance" == notice.reason
    assert 115 < notice.left_s <= 120
    assert 1 == server.asked.count(("PUT", 200)), "a token serves for many questions"


def test_a_deadline_that_is_past_leaves_no_time(server, watch):
    server.announce(-30, action="hibernate")
    assert notices.Notice("AWS will hibernate this spot instance", 0.0) == watch.result()


def test_a_token_that_has_expired_is_renewed(server, watch):
    server.until_asked("GET", 404)
    server.tokens.clear()
    server.until_asked("GET", 401)
    server.until_asked("GET", 404)
    server.announce(120)
    assert watch.result().left_s > 100


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_an_error_of_the_service_is_no_notice_and_ends_no_watch(method, server, watch):
    server.failing.add(method)
    if method == "PUT":
        server.tokens.clear()
    server.until_asked(method, 503)
    server.until_asked(method, 503)
    assert not watch.done()
    server.failing.clear()
    server.announce(120)
    assert watch.result().left_s > 100


def test_a_service_that_does_not_answer_is_asked_again(server, watch, monkeypatch):
    monkeypatch.setattr(notices, "ANSWER_S", 0.1)
    server.silent.set()
    server.until_asked("GET", None)
    server.until_asked("GET", None)
    server.silent.clear()
    server.announce(120)
    assert watch.result().left_s > 100


@pytest.mark.parametrize("answer", ["<html>", "[]", "{}", '{"action": "stop", "time": "soon"}'])
def test_an_answer_that_is_no_notice_is_none(answer, server, watch):
    server.notice = answer
    server.until_asked("GET", 200)
    server.until_asked("GET", 200)
    assert not watch.done()
    server.announce(120)
    assert watch.result().left_s > 100


def test_the_service_is_asked_directly_also_where_a_proxy_is_set(server, watch, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # where nothing listens
    monkeypatch.delenv("no_proxy", raising=False)
    server.announce(120)
    assert watch.result().left_s > 100


def test_a_machine_that_is_not_at_aws_is_not_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", raising=False)
    machine = tmp_path / "modalias"
    monkeypatch.setattr(notices, "DMI_FILE", str(machine))
    assert notices._endpoint() is None
    machine.write_text("dmi:bvnSeaBIOS:bvr1.16:svnQEMU:pnStandardPC:")
    assert notices._endpoint() is None
    assert asyncio.run(notices.spot_notice()) is None
    for maker in ("dmi:bvnAmazonEC2:bvr1.0:svnAmazonEC2:", "dmi:bvnXen:bvr4.11.amazon:svnXen:"):
        machine.write_text(maker)
        assert notices.ENDPOINT == notices._endpoint()


def test_a_service_that_must_not_be_asked_is_not(server, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "True")
    server.announce(120)
    assert asyncio.run(notices.spot_notice()) is None
    assert [] == server.asked
