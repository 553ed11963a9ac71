"""What a real run exports: scraped from Ray, and asked of a real Prometheus where there is one."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import data
import pytest
import ray
import yaml
from runs import kill, ray_train

from fairseq_ray_plugin import metrics

MODEL = (*data.MASKED_LM, "--fix-batch-size", "64", "--max-update", "100000")
EMPTY = ("straggler_ratio", "checkpoint_failures_total")
"""Of these a good run has nothing."""


@pytest.fixture
def run(tmp_path, english, two_nodes):
    run = ray_train(
        tmp_path,
        english,
        *(MODEL, "--save-interval-updates", "20", "--keep-interval-updates", "1"),
        address=two_nodes.address,
        pause_s=0.05,
    )
    run.until_update(30)
    kill(run.ranks()[1]["pid"])
    run.until_event("advanced", 2)
    run.until_event("checkpoint", 2)
    yield run
    run.process.terminate()
    assert 143 == run.wait()


def exported(places):
    return "".join(
        urllib.request.urlopen(f"http://{place}/metrics", timeout=10).read().decode()
        for place in places
    )


@pytest.fixture
def places(two_nodes):
    """Where Prometheus takes the metrics of each of the cluster's nodes."""
    ray.init(address=two_nodes.address, log_to_driver=False)
    yield [f"{n['NodeManagerAddress']}:{n['MetricsExportPort']}" for n in ray.nodes() if n["Alive"]]
    ray.shutdown()


def until(condition, limit_s=60):
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.5)
    return value


def test_every_figure_is_exported_by_names_that_prometheus_likes(run, places):
    wanted = {*metrics.GAUGES, *metrics.COUNTERS} - set(EMPTY)

    def ours():
        text = exported(places)
        names = set(re.findall(r"^ray_fairseq_ray_(\w+)\{", text, re.MULTILINE))
        return text if wanted <= names else None

    text = until(ours)
    lines = [line for line in text.splitlines() if "fairseq_ray_" in line]
    (run.folder / "metrics.txt").write_text("\n".join(lines) + "\n")
    values = dict(re.findall(r"^ray_fairseq_ray_(\w+)\{.*\} (\S+)$", "\n".join(lines), re.M))
    assert 2 == float(values["world_size"]) and 30 <= float(values["update"])
    assert 0 < float(values["goodput_ratio"]) < 1 and 0 < float(values["last_recovery_seconds"])
    assert abs(time.time() - float(values["checkpoint_timestamp_seconds"])) < 60
    assert 10_000 < float(values["checkpoint_size_bytes"])
    assert any('cause="LOST"' in line for line in lines if "stops_total" in line)
    if promtool := shutil.which("promtool"):
        checked = subprocess.run(
            [promtool, "check", "metrics"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
        )
        complaints = (checked.stdout + checked.stderr).splitlines()
        # Ray's own labels are called as in WorkerId
        assert [] == [line for line in complaints if "camelCase" not in line]


@pytest.mark.skipif(not shutil.which("prometheus"), reason="no Prometheus here")
def test_a_real_prometheus_answers_every_expression_of_the_dashboard(run, places, tmp_path):
    config, port = tmp_path / "prometheus.yml", free_port()
    scrape = {"job_name": "ray", "static_configs": [{"targets": places}]}
    config.write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]})
    )
    with open(tmp_path / "prometheus.log", "w") as log:
        server = subprocess.Popen(
            [
                *(
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={tmp_path / 'db'}",
                ),
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=log,
        )
    try:
        until(lambda: not without_answer(port), 60)
    except AssertionError:
        raise AssertionError(f"no answer to {without_answer(port)}") from None
    finally:
        server.terminate()
        server.wait()


def without_answer(port):
    """Expressions of the dashboard to which there is none."""
    command = [sys.executable, "-m", "fairseq_ray_plugin", "dashboard"]
    panels = json.loads(subprocess.check_output(command, text=True))["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    return [
        expression
        for expression in expressions
        if not any(name in expression for name in EMPTY) and not ask(port, expression)
    ]


def ask(port, expression):
    expression = expression.replace("$run", ".*").replace("$__rate_interval", "15s")
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}") as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{expression}: {error.read().decode()}") from None
    except urllib.error.URLError:  # it has not begun
        return []


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
