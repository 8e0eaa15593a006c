"""Which runs a recipe may go on with."""

import json

import pytest
from small_recipes import small

from fusionocc_core.checkpoints import encode_config
from fusionocc_core.engine.overrides import override
from fusionocc_core.engine.recipe import check_same_recipe


def written(recipe):
    """As it lies in a checkpoint."""
    return json.loads(json.dumps(encode_config(recipe)))


def test_the_same_recipe_goes_on():
    check_same_recipe(small(), written(small()))


def test_a_field_that_did_not_exist_then_counts_as_its_default():
    then = written(small())
    del then["data"]["val_keyframes"], then["model"]["inputs"]["float32_poses"], then["data"]["sensor_dropout"]
    check_same_recipe(small(), then)
    for change in ("data.val_keyframes=3", "model.inputs.float32_poses=true", "data.sensor_dropout.lidar=0.5"):
        key, value = change.split("=")
        with pytest.raises(ValueError, match=rf"{key}: .* then, {value.title() if value == 'true' else value} now"):
            check_same_recipe(override(small(), [change]), then)


def test_a_field_without_default_must_be_there():
    then = written(small())
    del then["preset"]
    with pytest.raises(ValueError, match="preset: None then"):
        check_same_recipe(small(), then)


def test_what_changes_no_result_may_change():
    check_same_recipe(override(small(), ["train.workers=7", "train.log_every=3"]), written(small()))
    with pytest.raises(ValueError, match=r"train\.optimizer\.lr: 0\.001 then, 0\.5 now"):
        check_same_recipe(override(small(), ["train.optimizer.lr=0.5"]), written(small()))
