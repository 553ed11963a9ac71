"""Every ``--ddp-backend`` for whole states trains alike, the default one first of all."""

import collections

import data
from runs import ray_train
from test_same_training import check_curves

BACKENDS = {
    "default": (),
    "c10d": ("--ddp-backend", "c10d"),
    "no_c10d": ("--ddp-backend", "no_c10d"),
    "unused": ("--ddp-backend", "pytorch_ddp", "--find-unused-parameters"),
}
# none of rank 0 where the other can complete the update: it is rank 0 that logs it
KILLS = [
    {"rank": 1, "update": 5, "where": "all_reduce", "what": "SIGKILL"},
    {"rank": 0, "update": 9, "where": "forward", "what": "SIGKILL"},
    {"rank": 1, "update": 14, "where": "optimizer", "what": "SIGKILL"},
]


def test_whatever_the_back_end_updates_are_the_same_and_so_is_what_kills_cost(
    tmp_path, english, two_nodes
):
    def train(folder, *options, **fields):
        return ray_train(
            tmp_path / folder,
            english,
            data.MASKED_LM,
            *("--max-update", "20", "--disable-validation", "--no-save"),
            *("--fix-batch-size", "16", *options),
            address=two_nodes.address,
            **fields,
        ).finish()

    legacy = train("legacy", "--ddp-backend", "legacy_ddp")
    assert 20 == len(legacy.curve()) and not legacy.events("stopped")
    check_curves(train("alone", "--ray-max-workers", "1").curve(), legacy.curve())
    for backend, options in BACKENDS.items():
        run = train(backend, *options, faults=KILLS)
        assert legacy.curve() == run.curve(), backend
        # rank 0 may have completed an update that the other had not: it is done again, alike
        again = {update: sorted(2 * ids) for update, ids in legacy.samples().items()}
        for update, ids in legacy.samples().items():
            assert run.samples()[update] in (ids, again[update]), (backend, update)
        assert len(KILLS) == len(run.events("stopped")), backend
        assert 1 == max(by_both(run).values()), backend


def by_both(run):
    """Update -> how often both ranks have completed it."""
    ranks = collections.defaultdict(set)
    for step in run.steps():
        ranks[step["update"], step["group"]].add(step["rank"])
    return collections.Counter(update for (update, _), done in ranks.items() if len(done) == 2)
