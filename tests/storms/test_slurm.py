"""The examples for Slurm, in a real Slurm: whatever it does to a job, the job trains the same."""

import os
import time

import data
import pytest
from runs import BIN, RECORDER, Run, ray_train
from slurm import FREEZER, Slurm, missing

EXAMPLES = data.REPOSITORY / "examples" / "slurm"
FIXED = (*data.MASKED_LM, "--fix-batch-size", "12", "--disable-validation")
MAX_UPDATE = ("--max-update", "300")

HAS_NONE = pytest.mark.skipif(not FREEZER.exists(), reason="no cgroup v1 here, with its freezer")
tracked_either_way = pytest.mark.parametrize(
    "slurm", ["linuxproc", pytest.param("cgroup", marks=HAS_NONE)], indirect=True
)

pytestmark = pytest.mark.skipif(missing() != "", reason=missing())


@pytest.fixture
def slurm(tmp_path, tmp_path_factory, request):
    folder = tmp_path / "slurm"
    folder.mkdir()
    shared = (data.REPOSITORY, tmp_path_factory.getbasetemp())
    with Slurm(folder, 3, shared, getattr(request, "param", "linuxproc")) as slurm:
        yield slurm


class Job(Run):
    """A job of train.sbatch; as a run, its process reads the log."""

    def __init__(self, slurm, folder, text, *options):
        folder.mkdir()
        self.slurm = slurm
        self.environment = data.environment() | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FAIRSEQ_RECORD": str(folder / "records"),
            "FAIRSEQ_PAUSE": "0.5",
        }
        self.id = slurm.submit(
            EXAMPLES / "train.sbatch",
            *(BIN / "fairseq-ray-train", text, *FIXED, *MAX_UPDATE),
            *("--user-dir", RECORDER, "--save-dir", folder / "save"),
            options=("--chdir", folder, "--output=log", *options),
            environment=self.environment,
        )
        (folder / "log").touch()
        super().__init__(folder, ["tail", "--lines=+1", "--follow", folder / "log"])

    @property
    def state(self):
        return self.slurm.job(self.id)["JobState"]

    @property
    def restarts(self):
        return int(self.slurm.job(self.id)["Restarts"])

    def until_restart(self, restarts):
        self.until(lambda: self.restarts == restarts and self.state == "RUNNING")
        before = len(self.events("started"))
        self.until(lambda: len(self.events("started")) > before)

    def finish(self):
        (self.records / "hurry").touch()
        self.until(lambda: self.state == "COMPLETED")
        time.sleep(1)  # what `tail` has not read
        self.process.kill()
        return self


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, english):
    """The losses of a run on one machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return ray_train(folder, english, FIXED, *MAX_UPDATE, "--ray-max-workers", "1").finish().curve()


def test_a_job_goes_on_without_a_node_and_after_its_time(tmp_path, english, slurm, undisturbed):
    job = Job(slurm, tmp_path / "job", english, "--nodes=2-3", "--signal=B:USR1@60", "--time=3")
    generation = job.until_advanced(world_size=3, after=0)
    last = job.steps()[-1]["update"]
    slurm.switch_off("n3")
    job.until_advanced(world_size=2, after=generation)
    job.until_update(last + 5)
    assert "RUNNING" == job.state and 0 == job.restarts

    job.until_event("interrupted")  # a minute or two before its end
    job.until_restart(1)
    job.finish()
    assert 1 == len(job.events("interrupted")) and 0 == job.redone()
    assert undisturbed == job.curve()


@tracked_either_way
def test_a_job_that_is_preempted_and_one_whose_first_node_fails_go_on(
    tmp_path, english, slurm, undisturbed
):
    job = Job(slurm, tmp_path / "job", english, "--nodes=2")
    job.until_advanced(world_size=2, after=0)
    urgent = ("--partition=high", "--nodes=2", "--output=/dev/null")
    slurm.submit("--wrap", "sleep 3", options=urgent)
    job.until_event("interrupted")
    job.until_restart(1)
    job.until_update(job.events("interrupted")[-1]["update"] + 5)
    assert 0 == job.redone()

    slurm.switch_off(slurm.job(job.id)["BatchHost"])
    job.until_restart(2)
    job.finish()
    assert 0 == job.redone(), "the other node's worker has saved"
    # what the command had not shown yet is gone with its node
    last = job.events("advanced")[-1]["update"] - 1
    assert undisturbed == {last: undisturbed[last]} | job.curve()


@tracked_either_way
def test_nodes_that_are_lent_join_and_leave_and_come_again(tmp_path, english, slurm, undisturbed):
    job = Job(slurm, tmp_path / "job", english, "--nodes=1")
    job.until_advanced(world_size=1, after=0)
    lent = slurm.submit(
        EXAMPLES / "worker.sbatch",
        job.id,
        options=("--array=1-2", "--chdir", job.folder, "--output=lent-%a.log"),
        environment=job.environment,
    )
    generation = job.until_advanced(world_size=3, after=0)
    urgent = ("--partition=high", "--nodelist=n3", "--output=/dev/null")
    slurm.submit("--wrap", "sleep 3", options=urgent)
    generation = job.until_advanced(world_size=2, after=generation)
    job.until_advanced(world_size=3, after=generation)
    assert "RUNNING" == job.state and 0 == job.restarts
    if slurm.proctrack == "cgroup":
        assert not [e for e in job.events("stopped") if "LOST" in e["cause"]], "it left in time"

    (job.records / "hurry").touch()
    job.until(lambda: not slurm.ask("squeue", "--noheader", "--jobs", lent))
    job.finish()
    assert 0 == job.redone() and undisturbed == job.curve()
