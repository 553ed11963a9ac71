"""The commands as a user gives them."""

import asyncio
import json
import pickle
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import data
import psutil
import pytest
from omegaconf import OmegaConf
from runs import RECORDER, Run, ray_train

import fairseq_ray_plugin
from fairseq_ray_plugin import early
from fairseq_ray_plugin.assignment import Job
from fairseq_ray_plugin.checkpoints import claim_places
from fairseq_ray_plugin.protocol import Ready
from fairseq_ray_plugin.worker.user_code import pack_folder
from fairseq_ray_plugin.worker.worker import Worker

BIN = Path(sys.executable).parent
PLUGIN = Path(fairseq_ray_plugin.__file__).parent


def command(name, *arguments):
    return subprocess.run(
        [str(part) for part in (BIN / name, *arguments)],
        capture_output=True,
        text=True,
        env=data.environment(),
        timeout=120,
    )


def test_help_has_fairseqs_options_and_ours():
    text = command("fairseq-ray-train", "--help").stdout
    before, ours = text.split("Ray related arguments")
    assert len(before.splitlines()) < 5, "they come first"
    for option in ("--ray-address", "--fix-batch-size", "--ray-min-workers", "--ray-max-workers"):
        assert option in ours
    assert "--update-freq" in text and "--lr-scheduler" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--ray-max-workers", "0"), "--ray-max-workers"),
        (("--ray-min-workers", "3", "--ray-max-workers", "2"), "--ray-min-workers 3"),
        (("--fix-batch-size", "6"), "--fix-batch-size 6 is not a multiple of --batch-size 4"),
        (("--arch", "no_such_model"), "no_such_model"),
        (
            ("--arch", "insertion_transformer"),
            "--arch insertion_transformer needs fairseq's libnat",
        ),
        (("--grouped-shuffling",), "--grouped-shuffling orders the data by the number of workers"),
        (("--zero-sharding", "os"), "--zero-sharding os gives each rank a part of the state"),
        (("--ray-address", "127.0.0.1:1"), "--ray-address 127.0.0.1:1"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(arguments, named, tmp_path, english):
    save_dir = tmp_path / "save"
    result = command(
        "fairseq-ray-train", english, *data.MASKED_LM, "--save-dir", save_dir, *arguments
    )
    assert 2 == result.returncode
    assert named in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("save/*.pt"))


@pytest.mark.parametrize(
    ("save_dir", "endpoint", "said"),
    [
        ("s3://bucket/run", "http://127.0.0.1:1", "127.0.0.1:1 cannot be reached"),
        ("s3://", None, "s3:// names no bucket"),
        ("nonsense://bucket/run", None, "fsspec knows no nonsense://"),
    ],
)
def test_a_store_that_is_not_there_is_refused_before_anything_starts(
    save_dir, endpoint, said, english, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    if endpoint is not None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    result = command("fairseq-ray-train", english, *data.MASKED_LM, "--save-dir", save_dir)
    assert 2 == result.returncode
    (line,) = result.stderr.splitlines()
    assert said in line and "hidden" not in line
    assert [] == [*tmp_path.iterdir()], "no folder s3:"


def test_where_a_store_is_goes_to_the_nodes_and_who_may_does_not():
    def is_sent(name):
        return bool(early.forwarded({name: "x"}))

    assert all(map(is_sent, ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION")))
    secret = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    assert not any(map(is_sent, secret))


def test_settings_for_gpus_and_their_networks_go_to_the_nodes_and_what_is_each_nodes_own_does_not():
    sent = {
        *(
            "NCCL_SOCKET_IFNAME",
            "NCCL_IB_HCA",
            "TORCH_NCCL_BLOCKING_WAIT",
            "PYTORCH_CUDA_ALLOC_CONF",
        ),
        *("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FI_PROVIDER", "FI_EFA_FORK_SAFE"),
        *("RDMAV_FORK_SAFE", "OFI_NCCL_PROTOCOL"),
    }
    own = {"CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_MPS_PIPE_DIRECTORY", "HOME"}
    assert sent == set(early.forwarded(dict.fromkeys(sent | own, "x")))


def where_no_cluster_is_seen():
    """The other tests have some on this machine, and Ray looks for one among all processes."""
    alone = ("unshare", "--pid", "--fork", "--mount-proc")
    return () if subprocess.run([*alone, "true"], capture_output=True).returncode else alone


def test_on_a_laptop_ray_starts_by_itself_and_stock_fairseq_reads_the_result(tmp_path, english):
    run = ray_train(
        tmp_path,
        english,
        data.LANGUAGE_MODELING,
        *("--max-update", "60", "--ray-max-workers", "2"),
        address="auto",
        under=where_no_cluster_is_seen(),
    ).finish()
    assert "local Ray on this machine" in run.output
    assert run.losses()[-1] < run.losses()[0] - 1
    output = data.run_tool(
        *("validate", english, "--task", "language_modeling", "--cpu", "--batch-size", "4"),
        *("--path", tmp_path / "save" / "checkpoint_last.pt", "--valid-subset", "valid"),
    )
    assert "valid on 'valid' subset" in output


def test_on_one_node_ranks_listen_where_no_other_can_reach_them(tmp_path, english):
    options = ("--ray-max-workers", "2", "--max-update", "60", "--disable-validation")
    run = ray_train(tmp_path, english, data.MASKED_LM, *options, pause_s=0.1)
    run.until_update(3)
    ranks = [psutil.Process(rank["pid"]) for rank in run.ranks()]
    for number, rank in enumerate(ranks):  # of the save dir, as much as there is room for
        assert rank.cmdline()[0].startswith(f"fairseq rank {number} of 2, generation 1: /")
    connections = [connection for rank in ranks for connection in rank.net_connections()]
    assert 2 == len(ranks)
    assert {"127.0.0.1"} == {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    run.finish()


def test_data_that_is_not_there_ends_the_run_at_once_in_one_line(tmp_path):
    options = (*data.MASKED_LM, "--ray-max-workers", "1")
    run = ray_train(tmp_path, tmp_path / "nowhere", options)
    assert 1 == run.wait()
    assert f"ERROR | fairseq_ray_plugin.driver | {tmp_path}/nowhere/dict.txt: No" in run.lines[-1]
    assert "Traceback" not in run.output and 1 == len(run.events("started"))


def test_a_save_dir_in_use_is_refused_at_once_and_its_run_goes_on(tmp_path, english):
    options = (*data.MASKED_LM, "--ray-max-workers", "1", "--disable-validation")
    run = ray_train(tmp_path, english, options, "--max-update", "30", pause_s=0.2)
    run.until_update(3)
    begin = time.monotonic()
    second = command("fairseq-ray-train", english, *options, "--save-dir", run.save_dir)
    took = time.monotonic() - begin
    assert 2 == second.returncode
    (line,) = second.stderr.splitlines()
    assert f"--save-dir {run.save_dir} is in use by a run on {socket.gethostname()}" in line
    assert f"(pid {run.process.pid}, since 2" in line
    assert took < 2, "before fairseq is imported"
    run.finish()
    assert 30 == run.events("finished")[-1]["update"]
    there = claim_places.place_of(str(run.save_dir))
    assert ["1.json"] == there.names() and json.loads(there.read("1.json"))["released"]


def test_as_a_plugin_stock_training_stays_as_it_is(tmp_path, english):
    save_dir = tmp_path / "save"
    output = data.run_tool(
        *("train", english, *data.MASKED_LM, "--save-dir", save_dir),
        *("--user-dir", PLUGIN, "--max-update", "3", "--disable-validation"),
    )
    assert "num_updates: 3 >= max_update: 3" in output
    assert not (save_dir / "elastic.jsonl").exists()


def test_as_a_plugin_it_trains_on_ray_when_an_address_is_given(tmp_path, english, two_nodes):
    run = Run(
        tmp_path,
        [
            *(sys.executable, "-m", "fairseq_ray_plugin", "train", english, *data.MASKED_LM),
            *("--save-dir", tmp_path / "save", "--user-dir", PLUGIN, "--max-update", "5"),
            *("--ray-address", two_nodes.address, "--disable-validation"),
        ],
    ).finish()
    assert [2] == [event["world_size"] for event in run.events("started")]


def test_hydra_configs_train_on_ray(tmp_path, english, two_nodes):
    run = Run(
        tmp_path,
        [
            *(BIN / "fairseq-ray-hydra-train", "--ray-address", two_nodes.address),
            *("--fix-batch-size", "16", f"hydra.run.dir={tmp_path}"),
            *("task=language_modeling", f"task.data={english}", "task.tokens_per_sample=64"),
            *("criterion=cross_entropy", "model=transformer_lm", "model.decoder_layers=1"),
            *("optimizer=adam", "lr_scheduler=fixed", "optimization.lr=[0.001]"),
            *("dataset.batch_size=8", "dataset.num_workers=0", "optimization.max_update=6"),
            *("common.cpu=true", "common.log_format=json", "common.log_interval=1"),
            *("dataset.disable_validation=true", f"checkpoint.save_dir={tmp_path / 'save'}"),
        ],
    ).finish()
    assert {"16"} == {size for (size,) in run.curve("bsz").values()}
    assert 6 == run.events("finished")[0]["update"]


def test_the_users_own_code_is_shipped_to_nodes_that_do_not_have_it(tmp_path, monkeypatch):
    class WorkerOfThisMachine(Worker):
        def get_node_ip(self):
            return "127.0.0.1"

        def get_node_id(self):
            return "node"

    package = shutil.copytree(RECORDER, tmp_path / "elsewhere" / "my_tasks")
    packed = pack_folder(str(package))
    shutil.rmtree(package)
    monkeypatch.setenv("FAIRSEQ_RECORD", str(tmp_path / "imported"))
    monkeypatch.setenv("PYTHONPATH", str(PLUGIN.parent))

    # too little to make a task of, which ranks would do themselves then
    sections = {
        "distributed_training": {"ddp_backend": "legacy_ddp", "pipeline_model_parallel": False},
        "common": {"model_parallel_size": 1, "tpu": False},
    }

    async def prepare():
        job = Job(
            run_id="test",
            cfg=pickle.dumps(OmegaConf.create(sections)),
            groups=None,
            restart_epoch=False,
            snapshot_updates=None,
            threads=1,
            working_dir=str(tmp_path),
            python_path=(),
            user_dir=str(package),
            user_dir_zip=packed,
            last_checkpoint=str(tmp_path / "checkpoint_last.pt"),
            environment={},
        )
        worker = WorkerOfThisMachine(job)
        await worker.prepare(job)
        messages = await asyncio.wait_for(worker.next_messages(0, 60), 60)
        await worker.stop()
        return messages, worker.user_dir

    messages, user_dir = asyncio.run(prepare())
    assert [Ready()] == messages
    assert user_dir != str(package)
    assert (tmp_path / "imported").is_dir(), "it was imported"
    assert not Path(user_dir).exists(), "and cleaned away"
