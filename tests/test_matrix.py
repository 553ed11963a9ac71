"""Of the recipes in matrix/, those that cover most; `make matrix` runs them all."""

import pytest
from fairseq import criterions, models, tasks
from matrix import MISSING, RECIPES
from matrix.recipe import check, data_of

QUICK = [recipe for recipe in RECIPES if recipe.quick]


@pytest.fixture(scope="session")
def matrix_data(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.mark.parametrize("recipe", QUICK, ids=[recipe.name for recipe in QUICK])
def test_a_rank_killed_in_each_epoch_changes_nothing_that_is_logged(
    recipe, matrix_data, tmp_path, two_nodes
):
    outcome = check(recipe, data_of(recipe, matrix_data), tmp_path, two_nodes.address)
    assert outcome.same, f"{outcome.why}\n{outcome.log}"


def test_what_fairseq_registers_has_a_recipe_or_a_reason_not_to():
    registered = {
        "task": set(tasks.TASK_REGISTRY),
        "criterion": set(criterions.CRITERION_REGISTRY),
        "model": set(models.MODEL_REGISTRY),
    }
    covered = {
        "task": {recipe.task for recipe in RECIPES},
        "criterion": {recipe.criterion for recipe in RECIPES},
        "model": {models.ARCH_MODEL_NAME_REGISTRY.get(one.arch, one.arch) for one in RECIPES},
    }
    for kind, names in registered.items():
        missing = MISSING[kind].keys()
        assert not missing & covered[kind]
        # what the examples' --user-dir register is covered, and not registered here
        assert missing <= names <= covered[kind] | missing
