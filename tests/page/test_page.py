"""What people see of a run's account: on a terminal, as a page, as a trace."""

import html.parser
import io
import json
import re
import shutil
import subprocess
import time

import journals
import pytest
from rich.console import Console

from fairseq_ray_plugin.accounting.account import account
from fairseq_ray_plugin.checkpoints import stores
from fairseq_ray_plugin.page import charts, command, terminal, trace, words
from fairseq_ray_plugin.page import html as html_page
from fairseq_ray_plugin.report import journal


def a_run():
    """Two workers, of which one is killed; then one hangs; the code raises; and the end."""
    made = journals.Made(now=1.7e9).come("w0", "w1", ready_after=5).begin("w0", "w1")
    logged = {"update": 20, "loss": 7.5, "lr": 1e-4}
    made.progress(20, after=20, loading=0.4, training=20.0, logged=logged)
    made.write("checkpoint", path="save/checkpoint_last.pt")
    made.stop("LOST: rank 1 was killed by SIGKILL", 0.2, "node-w1", update=20, training=20.0)
    made.begin("w0", source=20)
    logged = {"update": 80, "loss": 5.5, "lr": 2e-4}
    made.progress(80, after=60, loading=0.4, training=60.0, logged=logged)
    made.write("stacks", cause="what rank 0 was doing", stacks="Thread 1 <MainThread>: hangs()")
    made.stop("HUNG: no progress for 30 s", 0.1, "node-w0", update=80, training=60.0, in_flight=30)
    made.begin("w0", source=80).progress(90, after=10, training=10.0)
    made.stop("FAILED: rank 0 raised ValueError: <odd>", 0.1, "node-w0", update=90, training=10.0)
    made.lines[-1]["traceback"] = "Traceback\n  in forward <b>\nValueError: <odd>"
    return made


def with_a_slow_rank(made):
    there = {"rank": 1, "node": "node-slow", "seconds": 0.9, "data": 0.3}
    made.lines[4]["strides"] = {"median": 0.5, "slowest": [there | {"seconds": 1.1}]}
    return made.write("slow", cause="rank 1 takes 0.9 s", median=0.5, **there)


def said(told, width=140):
    text = io.StringIO()
    terminal.show(told, "save", Console(file=text, width=width))
    return text.getvalue()


class Reader(html.parser.HTMLParser):
    """What a page has, and that its elements end in the order in which they began."""

    void = {"meta", "path", "rect", "use", "circle", "th", "td"}

    def __init__(self, page):
        super().__init__()
        self.open, self.addresses, self.text, self.names = [], [], "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        if name not in self.void:
            self.open.append(name)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, name):
        if name not in self.void:
            assert name == self.open.pop()

    def handle_data(self, data):
        self.text += data


def test_what_was_dropped_for_lack_of_memory_is_told_where_there_was_any():
    made = a_run()
    assert "dropped" not in said(account(made.lines))
    for dropped in (True, False, True):
        made.write("out of memory", dropped=dropped)
    assert re.search(r"mini-batches dropped +2 ", said(account(made.lines)))
    assert "2 mini-batches were dropped" in journal.summary(made.lines)


def test_the_terminal_says_where_the_time_went_and_whose_the_failures_are():
    text = said(account(a_run().end().lines))
    assert re.search(r"failures\s+3, one every 32 s", text), text
    assert re.search(r"updates\s+90\b", text) and re.search(r"workers\s+2 -> 1\b", text)
    assert re.search(r"node-w0 +2 ", text) and re.search(r"HUNG +1 ", text)
    shares = [float(share) for share in re.findall(r"(\d+\.\d)%  ", text.partition("in all")[0])]
    assert 100 == pytest.approx(sum(shares), abs=0.5)
    assert all(len(line) <= 60 for line in said(account(a_run().lines), 60).splitlines())


def test_the_page_needs_nothing_else_and_says_all_there_is_to_a_failure():
    page = html_page.page(account(a_run().end().lines), "s3://bucket/run")
    read = Reader(page)
    assert [] == read.open
    assert {"#"} == {address[0] for address in read.addresses}, "it points to nothing else"
    assert "script" not in read.names and "http" not in page
    assert "prefers-color-scheme: dark" in page
    for words_there in (
        "in forward <b>",
        "ValueError: <odd>",
        "hangs()",
        "was killed by SIGKILL",
        "s3://bucket/run",
    ):
        assert words_there in read.text
    assert 3 + 2 == read.names.count("details"), "a failure each, checkpoints, events"


def test_the_slowest_ranks_are_told_with_their_nodes():
    told = account(with_a_slow_rank(a_run()).end().lines)
    (row,) = [line for line in said(told).splitlines() if "node-slow" in line]
    assert ["node-slow", "1", "1", "s", "30.0%", "100%", "1"] == row.split()
    text = Reader(html_page.page(told, "save")).text
    assert "Slowest ranks" in text and "node-slow" in text
    assert "Slowest ranks" not in Reader(html_page.page(account(a_run().lines), "save")).text


@pytest.mark.parametrize("lines", [[], ["waiting"], ["started"], ["stopped"], ["finished"]])
def test_a_run_of_which_little_is_known_has_a_page_all_the_same(lines):
    made = journals.Made().write("slots", came={"w0": "n"})
    for kind in lines:
        made.write(kind, cause=None)
    told = account(made.lines)
    assert [] == Reader(html_page.page(told, "save")).open
    assert said(told) and json.loads(trace.trace(told))


def test_ten_thousand_lines_make_a_page_of_less_than_300_kb():
    told = account(journals.long_run())
    begin = time.process_time()
    page = html_page.page(told, "save")
    assert time.process_time() - begin < 2
    assert len(page.encode()) < 300_000
    assert [] == Reader(page).open


def test_what_would_make_the_page_large_is_drawn_more_coarsely(monkeypatch):
    told = account(journals.long_run(2000))
    finely = len(html_page.page(told, "save"))
    monkeypatch.setattr(charts, "MOST_RUNS", 60)
    assert len(html_page.page(told, "save")) < finely - 1_000


def test_the_trace_has_a_track_for_each_slot_on_which_nothing_overlaps():
    events = json.loads(trace.trace(account(a_run().end().lines)))["traceEvents"]
    tracks = {e["tid"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    assert {0, 1} == tracks
    for track in tracks:
        there = sorted((e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == track)
        for (begin, length), (after, _) in zip(there, there[1:], strict=False):
            assert begin + length <= after
    assert {"training", "fork and load", "starting", "coming to rest"} == {
        e["name"] for e in events if e["ph"] == "X"
    }


def test_the_command_writes_what_is_asked_for_and_says_in_a_line_what_it_cannot(tmp_path, capsys):
    journal = tmp_path / "elastic.jsonl"
    journal.write_text("".join(json.dumps(line) + "\n" for line in a_run().lines) + '{"time": 17')
    assert 0 == command.main([str(tmp_path)])
    assert "goodput" in capsys.readouterr().out
    page, traced = tmp_path / "run.html", tmp_path / "run.json"
    assert 0 == command.main([str(tmp_path), "--html", str(page), "--trace", str(traced)])
    assert "<!DOCTYPE html>" in page.read_text() and json.loads(traced.read_text())
    assert 2 == command.main([str(tmp_path / "nowhere")])
    assert f"{tmp_path / 'nowhere' / 'elastic.jsonl'}: No such file" in capsys.readouterr().err
    journal.write_text("")
    assert 2 == command.main([str(tmp_path)])
    assert "elastic.jsonl has no events" in capsys.readouterr().err


def test_the_journal_of_a_run_in_a_store_is_read_there(capsys):
    pytest.importorskip("fsspec")
    lines = "".join(json.dumps(line) + "\n" for line in a_run().end().lines)
    stores.open_store("memory://bucket/run").put_bytes("elastic.jsonl", lines.encode())
    assert 0 == command.main(["memory://bucket/run"])
    assert "memory://bucket/run: finished" in capsys.readouterr().out
    assert 2 == command.main(["memory://bucket/none"])
    (said,) = capsys.readouterr().err.splitlines()
    assert "memory://bucket/none" in said


def test_times_are_said_in_two_units_at_the_most():
    for seconds, text in (
        (0, "0.0 s"),
        (0.52, "0.52 s"),
        (3.21, "3.2 s"),
        (41.4, "41 s"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (5 * 3600 + 150, "5 h 2 min"),
        (90_000, "1 d 1 h"),
    ):
        assert text == words.duration(seconds)


@pytest.mark.skipif(not shutil.which("chromium"), reason="no browser here")
@pytest.mark.parametrize("scheme", [0, 1])
def test_a_browser_shows_the_page_in_the_dark_and_in_the_light(tmp_path, scheme):
    Image = pytest.importorskip("PIL.Image")
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(html_page.page(account(a_run().end().lines), "save"))
    subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--window-size=1100,900", f"--blink-settings=preferredColorScheme={scheme}"),
            *(f"--screenshot={picture}", page.as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=100,
    )
    colours = Image.open(picture).convert("L").getcolors()
    (_, ground), *_ = sorted(colours, reverse=True)
    assert ground > 200 if scheme else ground < 60
    assert len(colours) > 50, "there are pictures on it"
