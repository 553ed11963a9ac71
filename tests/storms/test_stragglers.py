"""A rank that is slow for a minute is named while training goes on, by both ways of exchange."""

import json

import data
import pytest
from runs import TESTS, ray_train

SLOW_S = 0.2
"""Beside it a mini-batch of this model is nothing."""


@pytest.mark.parametrize("backend", ["legacy_ddp", "pytorch_ddp"])
def test_the_slow_rank_and_no_other_is_named(backend, tmp_path, english, two_nodes, monkeypatch):
    monkeypatch.setenv("FAIRSEQ_SLOW", json.dumps({"rank": 1, "forward": SLOW_S}))
    run = ray_train(
        tmp_path,
        english,
        (*data.MASKED_LM, "--max-update", "100000", "--ddp-backend", backend),
        *("--user-dir", TESTS / "slow"),
        address=two_nodes.address,
    )
    slow = run.until_event("slow")
    run.process.terminate()
    assert 143 == run.wait()
    (only,) = run.events("slow")
    (there,) = [rank for rank in run.ranks() if rank["rank"] == 1]
    assert (1, there["node"]) == (slow["rank"], slow["node"]) and only == slow
    assert SLOW_S <= slow["seconds"] and slow["median"] < SLOW_S / 2, "the others' waits are not it"
    assert any("rank 1 (on node" in line and "more than the median" in line for line in run.lines)
    (*_, last) = [line["strides"] for line in run.events("progress") if "strides" in line]
    assert [1, 0] == [rank["rank"] for rank in last["slowest"]]
