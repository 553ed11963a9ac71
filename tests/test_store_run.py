"""A run whose save dir is in an object store: as with a folder, and no folder is needed."""

import glob
import json
import os
from pathlib import Path

import data
import object_stores
import pytest
from faulty_proxy import FaultyProxy
from ray.cluster_utils import Cluster
from runs import kill, ray_train

from fairseq_ray_plugin.checkpoints import claim_places

URL = f"s3://{object_stores.BUCKET}/runs/one"
OPTIONS = (
    *(*data.MASKED_LM, "--fix-batch-size", "8", "--max-update", "120"),
    *("--save-interval-updates", "10", "--keep-interval-updates", "2"),
)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A server, what is between, and the folder that it serves; every node has the keys."""
    folder = tmp_path / "served"
    (folder / object_stores.BUCKET).mkdir(parents=True)
    for name, value in object_stores.KEYS.items():
        monkeypatch.setenv(name, value)
    with object_stores.rclone(folder) as endpoint, FaultyProxy(endpoint) as proxy:
        yield proxy, folder / object_stores.BUCKET / "runs" / "one"


@pytest.fixture
def with_keys(store, ray_folder):
    """A cluster whose every node has them, also the one that the control loop lives on."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def names(folder):
    return sorted(path.name for path in Path(folder).glob("*.pt"))


def test_a_run_into_a_store_is_as_one_into_a_folder_whatever_happens(
    tmp_path, english, store, with_keys, monkeypatch
):
    proxy, there = store
    address = with_keys
    plain = ray_train(tmp_path / "plain", english, OPTIONS, address=address).finish()
    # nodes do not have it: it comes with the run
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
    faults = [{"rank": 1, "update": 13, "where": "begin", "what": "SIGKILL"}]
    where = {"address": address, "faults": faults, "pause_s": 0.1}

    run = ray_train(tmp_path / "run", english, OPTIONS, "--save-dir", URL, **where)
    run.save_dir = there
    run.until_event("checkpoint", 2)
    proxy.is_away = True
    away_at = run.steps()[-1]["update"]
    run.until_update(away_at // 10 * 10 + 14)  # one is due meanwhile
    before = names(there)
    run.until_update(run.steps()[-1]["update"] + 2)
    assert before == names(there)
    proxy.is_away = False
    run.until(lambda: names(there) != before)
    run.process.terminate()
    assert 143 == run.wait()
    assert "checkpoint_last.pt" in names(there)
    assert f"{URL}/checkpoint_last.pt" == run.events("checkpoint")[-1]["path"]
    assert {"released": True}.items() <= claim_of(there).items()

    again = ray_train(tmp_path / "run", english, OPTIONS, "--save-dir", URL, **where)
    again.save_dir = there
    again.finish()
    assert 0 == again.redone()
    assert plain.curve() == run.curve() | again.curve()
    assert names(plain.save_dir) == names(there)
    assert 1 == len(again.events("interrupted")) == len(again.events("finished"))
    assert not Path("s3:").exists() and not [*Path(tmp_path).rglob("s3:")]
    assert object_stores.KEYS["AWS_SECRET_ACCESS_KEY"] not in run.output + again.output
    table = data.run_tool("checkpoints", URL)
    assert len(names(there)) == table.count(" whole\n")


def test_what_is_lost_in_memory_comes_from_the_store_and_so_does_a_named_file(
    tmp_path, english, nodes
):
    nodes.add()
    address, there = nodes.address, tmp_path / "store"
    url = f"file://{there}"
    limits = ("--ray-max-workers", "1", "--disable-validation", "--ray-snapshot-updates", "0")
    options = (*OPTIONS, *limits, "--max-update", "45")
    plain = ray_train(tmp_path / "plain", english, options, address=address).finish()

    run = ray_train(
        tmp_path / "run", english, options, "--save-dir", url, address=address, pause_s=0.2
    )
    run.save_dir = there
    run.until(lambda: run.events("checkpoint")[-1:] and run.events("checkpoint")[-1]["update"] > 10)
    run.until_update(run.events("checkpoint")[-1]["update"] + 3)
    last = there / "checkpoint_last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content)
    (rank,) = run.ranks()
    for snapshot in glob.glob(f"/dev/shm/fairseq_ray_*{rank['node']}/*.raw"):
        os.remove(snapshot)
    kill(rank["pid"])
    run.finish()
    assert f"{url}/checkpoint_last.pt cannot be gone on from" in run.output
    assert f"going on from {url}/checkpoint_1_" in run.output
    assert 1 <= run.redone() and plain.curve() == run.curve()

    # into a folder, from a file in the store, with the count of updates
    named = ray_train(
        *(tmp_path / "named", english, options, "--max-update", "48"),
        *("--restore-file", f"{url}/checkpoint_last.pt"),
        address=address,
    ).finish()
    assert [46, 47, 48] == [*named.curve()]
    assert (tmp_path / "named" / "save" / "checkpoint_last.pt").exists()


def claim_of(folder):
    place = claim_places.InFolder(str(folder))
    (name,) = place.names()
    return json.loads(place.read(name))
