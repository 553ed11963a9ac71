"""A head that is slow, wrong or dead stops nobody, and hears in the end what is wanted."""

import threading
import time

import pytest

from fairseq_ray_plugin import surveyor
from fairseq_ray_plugin.surveyor import Survey, Surveyor

BUNDLE = {"CPU": 1.0}
EMPTY = Survey({}, {})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(surveyor, "SURVEY_S", 0.01)


def test_what_is_wanted_is_asked_for_once_and_again_where_that_failed():
    asked, heard, is_quiet = [], [], threading.Event()

    def request(bundles):
        asked.append(bundles)
        if len(asked) == 2:
            raise ConnectionError("no head")

    def survey():
        if len(asked) == 3:
            is_quiet.set()
        return EMPTY

    ours = Surveyor(survey, request, lambda: heard.append(len(asked)))
    while not asked:
        time.sleep(0.001)
    ours.want([BUNDLE])
    assert is_quiet.wait(10)
    count = ours.count
    while ours.count < count + 3:
        time.sleep(0.001)
    assert [[], [BUNDLE], [BUNDLE]] == asked
    ours.close()
    assert [] == asked[-1], "nothing is wanted any more"
    assert 0 == heard[0] and ours.count == len(heard), "each answer is told, the first at once"


def test_a_head_that_never_answers_is_not_waited_for():
    hangs = threading.Event()
    ours = Surveyor(lambda: hangs.wait() and EMPTY, lambda bundles: None)
    begin = time.monotonic()
    ours.close(0.1)
    assert time.monotonic() - begin < 5
    assert (0, None) == (ours.count, ours.latest)
    hangs.set()


def test_a_head_that_fails_is_asked_again():
    answers = iter([ConnectionError("no head"), EMPTY])

    def survey():
        answer = next(answers, EMPTY)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ours = Surveyor(survey, lambda bundles: None)
    while ours.latest is None:
        time.sleep(0.001)
    ours.close()


def test_room_is_where_a_worker_fits_that_does_not_go():
    free = {"a": {"CPU": 5.0}, "b": {"CPU": 1.0}, "c": {"CPU": 8.0, "GPU": 3.0}, "d": {}}
    survey = Survey({**free, "goes": {"CPU": 4.0}}, {"goes": 0.0})
    assert {"a": 2, "c": 4} == survey.slots({"CPU": 2.0})
    assert {"c": 3} == survey.slots({"CPU": 1.0, "GPU": 1.0})
