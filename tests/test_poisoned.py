"""Where the user's code starts CUDA on import, each rank is a new interpreter; all is as ever."""

import data
from runs import TESTS, ray_train

POISONED = TESTS / "poisoned"


def test_a_run_whose_code_starts_cuda_trains_and_survives_kills(tmp_path, english, two_nodes):
    run = ray_train(
        tmp_path,
        english,
        data.MASKED_LM,
        *("--user-dir", POISONED, "--fix-batch-size", "8", "--max-update", "8"),
        "--disable-validation",
        address=two_nodes.address,
        faults=[{"rank": 1, "update": 4, "where": "begin", "what": "SIGKILL"}],
    )
    run.finish()
    assert 1 == run.output.count("starts CUDA, which no forked process could use")
    assert [2, 2] == [event["world_size"] for event in run.events("started")]
    assert (0, 8) == (run.redone(), len(run.samples()))
    ranks = [rank["pid"] for event in run.events("started") for rank in event["ranks"]]
    importers = {line["pid"] for line in run.lines_of("imported")}
    assert 4 == len(set(ranks)) and set(ranks) < importers, "each has imported it for itself"
    assert {line["pid"] for line in run.steps()} == set(ranks)
