"""What is asked of Ray's head by name."""

import ray

from fairseq_ray_plugin import head


def test_a_run_finds_and_ends_no_others_workers(monkeypatch):
    names = [head.name_for("one", "worker-0"), head.name_for("other", "worker-0"), "loop-x"]
    ended = []
    monkeypatch.setattr(ray.util, "list_named_actors", lambda: names)
    monkeypatch.setattr(ray, "get_actor", lambda name: name)
    monkeypatch.setattr(ray, "kill", ended.append)
    head.end_workers("one")
    assert ["one/worker-0"] == ended
