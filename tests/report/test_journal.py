"""The journal is one JSON object a line, whatever happened to the driver before."""

import json
from pathlib import Path

from fairseq_ray_plugin.report.journal import Event, EventKind, Journal, line, read, summary


def event(kind, **fields):
    return line(Event(**{"kind": kind, "generation": 1, "world_size": 2, "update": 5, **fields}))


def test_an_event_is_a_line_with_all_fields(tmp_path):
    journal = Journal(str(tmp_path / "new" / "folder"))
    journal.write(event(EventKind.STOPPED, cause="LOST", details={"path": "x"}))
    (written,) = read(journal.path)
    expected = {"time", "kind", "generation", "world_size", "update", "cause", "path", "run"}
    assert expected == set(written)
    assert ("stopped", "LOST", "x") == (written["kind"], written["cause"], written["path"])


def test_of_several_runs_in_one_folder_each_knows_its_own_lines(tmp_path):
    first, second = Journal(str(tmp_path), "first"), Journal(str(tmp_path), "second")
    for journal, kind in ((first, EventKind.STARTED), (second, EventKind.WAITING)):
        journal.write(event(kind))
    (tmp_path / "elastic.jsonl").open("a").write('{"kind": "advanced"}\n')  # of an older version
    assert ["started"] == [written["kind"] for written in first.of_run()]
    assert ["waiting"] == [written["kind"] for written in second.of_run()]


def test_half_a_line_left_by_a_killed_driver_does_no_harm(tmp_path):
    (tmp_path / "elastic.jsonl").write_text('{"kind": "star')
    journal = Journal(str(tmp_path))
    journal.write(event(EventKind.STARTED))
    assert ["started"] == [written["kind"] for written in read(journal.path)]


def test_the_summary_counts_from_a_stop_to_the_next_first_update():
    times = [("started", 0), ("advanced", 1), ("stopped", 10), ("started", 11), ("advanced", 12.5)]
    lines = [
        {"kind": kind, "time": time, "update": 7, "world_size": 1 + (time < 10)}
        for kind, time in times
    ]
    assert "7 updates; workers 2 -> 1; 1 restarts took 2.5 s in all" == summary(
        json.loads(json.dumps(lines))
    )


def test_the_docs_list_of_events_is_made_from_the_kinds_there_are():
    docs = (Path(__file__).parents[2] / "docs" / "recovery.md").read_text()
    table = "".join(f"| `{kind.value}` | {kind.meaning} |\n" for kind in EventKind)
    assert f"<!-- kinds -->\n| kind | |\n|---|---|\n{table}<!-- end" in docs
