"""Every ``--ddp-backend`` for whole states trains alike, the default one first of all."""

import data
import pytest
from runs import ray_train
from test_same_training import check_curves

MODELS = {
    "masked_lm": (*data.MASKED_LM, "--fix-batch-size", "16"),
    "translation": (*data.TRANSLATION, "--fix-batch-size", "2000"),
    "language_modeling": (*data.LANGUAGE_MODELING, "--fix-batch-size", "16"),
    # the batch is by the number of workers
    "masked_lm_not_fixed": (*data.MASKED_LM, "--update-freq", "2"),
}
BACKENDS = {
    "default": (),
    "c10d": ("--ddp-backend", "c10d"),
    "no_c10d": ("--ddp-backend", "no_c10d"),
    "unused": ("--ddp-backend", "pytorch_ddp", "--find-unused-parameters"),
}
KILLS = [
    {"rank": 1, "update": 5, "where": "forward", "what": "SIGKILL"},
    {"rank": 0, "update": 9, "where": "forward", "what": "SIGKILL"},
    # not rank 0, which logs: the other may complete the update, for it has all gradients by now
    {"rank": 1, "update": 12, "where": "all_reduce", "what": "SIGKILL"},
    {"rank": 1, "update": 16, "where": "optimizer", "what": "SIGKILL"},
]


@pytest.mark.parametrize("name", MODELS)
def test_whatever_the_back_end_updates_are_the_same_and_so_is_what_kills_cost(
    name, tmp_path, request, two_nodes
):
    text = request.getfixturevalue("parallel" if name == "translation" else "english")

    def train(folder, *options, **fields):
        return ray_train(
            tmp_path / folder,
            text,
            MODELS[name],
            *("--max-update", "20", "--disable-validation", "--no-save", *options),
            address=two_nodes.address,
            **fields,
        ).finish()

    legacy = train("legacy", "--ddp-backend", "legacy_ddp")
    assert 20 == len(legacy.curve()) and not legacy.events("stopped")
    if name != "masked_lm_not_fixed":
        check_curves(train("alone", "--ray-max-workers", "1").curve(), legacy.curve())
    for backend, options in BACKENDS.items():
        run = train(backend, *options, faults=KILLS)
        assert legacy.curve() == run.curve(), backend
        assert legacy.samples() == run.samples(), backend
        assert len(KILLS) == len(run.events("stopped")), backend
        assert 0 == run.redone(), backend
