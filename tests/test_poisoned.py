"""Where the user's code starts CUDA on import, each rank is a new interpreter; all is as ever."""

import os

import data
from runs import TESTS, ray_train

POISONED = TESTS / "poisoned"


def test_a_run_whose_code_starts_cuda_trains_and_survives_kills(tmp_path, english, two_nodes):
    run = ray_train(
        tmp_path,
        english,
        data.MASKED_LM,
        *("--user-dir", POISONED, "--fix-batch-size", "8", "--max-update", "12"),
        "--disable-validation",
        address=two_nodes.address,
        faults=[{"rank": 1, "update": 5, "where": "begin", "what": "SIGKILL"}],
    )
    run.until_event("started")
    with open(f"/proc/{run.ranks()[0]['pid']}/cmdline") as file:
        assert "fairseq_ray_plugin.worker.fresh" in file.read()
    run.finish()
    assert 1 == run.output.count("starts CUDA, which no forked process could use")
    assert [2, 2] == [event["world_size"] for event in run.events("started")]
    assert (0, 12) == (run.redone(), len(run.samples()))
    (first,), (second,) = (
        {step["pid"] for step in run.steps() if step["rank"] == 1 and step["group"] == group}
        for group in dict.fromkeys(step["group"] for step in run.steps())
    )
    assert first != second and not os.path.exists(f"/proc/{first}")
