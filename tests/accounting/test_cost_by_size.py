"""The tables and the picture on models of several sizes, from lines of results."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import cost_by_size

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
OLD = {
    **{"arch": "roberta_base", "contestant": "ours", "start_s": 18.7, "u_s": 0.88, "c_s": 0.71},
    "redone": 0,
    "events": {"drain": [{"recovery_s": 3.6, "whole_s": 3.6, "stall_s": 2.7}]},
}


def event(seconds, **steps):
    return {"recovery_s": seconds, "whole_s": seconds, "stall_s": seconds / 2, "steps": steps}


def line(arch="small", state_bytes=13_400_000, **fields):
    told = {
        **{"arch": arch, "contestant": "ours", "date": "2026-11-25", "start_s": 8.0, "redone": 0},
        **{"u_s": 0.02, "c_s": 0.004, "state_bytes": state_bytes, "put_by_s": [0.01, 0.005, 0.006]},
        "events": {
            "kill-process": [
                event(0.50, hold=0.1, load=0.2),
                event(0.40, hold=0.1, load=0.1),
                event(0.41, hold=0.3, load=0.1, agree=0.01),
            ],
            "drain": [event(0.8, hold=0.0, load=0.2)],
        },
    }
    return told | fields


LARGE = line("roberta_large", 3_720_000_000, u_s=3.0, c_s=2.5)


def cells(table, row):
    """Those of the row with that name; of the head, without one."""
    begin = f"| {row} |" if row else "| |"
    (found,) = [text for text in table.splitlines() if text.startswith(begin)]
    return [cell.strip() for cell in found.strip("|").split("|")][1:]


def test_a_cost_stands_beside_what_is_aimed_at_with_the_same_u_and_c():
    table = cost_by_size.costs([LARGE, line()])
    assert cells(table, "") == ["aim", "small, 13 MB", "roberta_large, 3.72 GB"]
    assert cells(table, "a training process is killed") == [
        "u + 1.0 s + 2 c",
        "0.41 s (0.40 to 0.50), aim 1.03 s",
        "0.41 s (0.40 to 0.50), aim 9.0 s",
    ]
    assert cells(table, "a node is left in time: the stall")[1:] == [
        "0.40 s (0.40 to 0.40), aim 0.52 s",
        "0.40 s (0.40 to 0.40), aim 6.0 s",
    ]
    assert cells(table, "the state is put by: the stall")[1] == (
        "0.0060 s (0.0050 to 0.0100), aim 0.0052 s"
    )
    assert cells(table, "the state is put by: the stall")[0] == "1.3 c"
    assert cells(table, "a node is added: the stall")[0] == "u + 0.5 s + c"
    assert cells(table, "a node is killed") == ["u + 2.2 s + 2 c", "", ""]


def test_a_line_without_the_newer_fields_has_empty_cells():
    table = cost_by_size.costs([OLD, line()])
    assert cells(table, "") == ["aim", "small, 13 MB", "roberta_base"], "last: its size is unknown"
    assert cells(table, "a node is left in time: the stall")[2] == "2.7 s (2.7 to 2.7), aim 2.1 s"
    assert cells(table, "the state is put by: the stall")[2] == ""
    assert cells(table, "measured on") == ["", "2026-11-25", ""]
    assert "roberta_base" not in cost_by_size.steps([OLD, line()])


def test_a_run_that_did_not_go_on_says_so_where_it_has_no_figure():
    table = cost_by_size.costs([line(failed="did not go on in 300 s")])
    assert cells(table, "a node is killed")[1] == "not measured: it did not go on in 300 s"
    assert cells(table, "a training process is killed")[1].startswith("0.41 s")


def test_steps_are_medians_in_the_order_in_which_they_are_taken():
    assert cost_by_size.steps([line()]).splitlines() == [
        "| seconds | hold | load | agree |",
        "|---|---|---|---|",
        "| small, a training process is killed | 0.10 | 0.10 | 0.00 |",
        "| small, a node is left in time | 0.00 | 0.20 | 0.00 |",
    ]


def test_others_stand_beside_ours_at_sizes_where_they_have_run():
    torchft = {
        **{"arch": "small", "contestant": "torchft", "u_s": 0.02, "start_s": 9.0, "redone": 0},
        "events": {"kill-process": [{"recovery_s": 0.1, "whole_s": 7.0, "stall_s": 7.0}]},
        "failed": "did not go on in 300 s",
    }
    table = cost_by_size.peers([torchft, line(), OLD])
    assert cells(table, "small, fairseq-ray-train")[2] == "0.41 s (0.40 to 0.50)"
    assert cells(table, "small, torchft")[2] == (
        "0.10 s (0.10 to 0.10), with both ranks 7.0 s, then it did not go on in 300 s"
    )
    assert "roberta_base" not in table


@pytest.fixture
def docs(tmp_path):
    shutil.copy(PAGE, tmp_path)
    return tmp_path


def test_one_size_is_not_drawn(docs):
    cost_by_size.write([OLD, line()], docs)
    page = (docs / "performance.md").read_text()
    assert cost_by_size.NOT_DRAWN in page
    assert "0.41 s (0.40 to 0.50), aim 1.03 s" in page
    assert not (docs / "cost-by-size.svg").exists()


def test_the_picture_has_a_curve_an_event_over_the_sizes(docs):
    pytest.importorskip("matplotlib")
    cost_by_size.write([OLD, LARGE, line()], docs)
    assert cost_by_size.PICTURE in (docs / "performance.md").read_text()
    drawn = (docs / "cost-by-size.svg").read_text()
    for text in ("13 MB", "3.72 GB", "roberta_large", "a training process is killed", "u + c"):
        assert f">{text}<" in drawn
    assert "a node is killed" not in drawn, "nothing was measured"
    assert "roberta_base" not in drawn, "its size is unknown"
    again = (docs / "cost-by-size.svg").read_bytes()
    cost_by_size.write([OLD, LARGE, line()], docs)
    assert again == (docs / "cost-by-size.svg").read_bytes()
