"""Recipes by name, out of a file or a folder."""

from pathlib import Path

import pytest

from fusionocc_core.engine.recipe_files import find_recipe, list_recipes

SHIPPED = Path(__file__).resolve().parents[2] / "training" / "recipes"

RECIPE = """
from fusionocc_core.engine.recipe import Recipe
from fusionocc_core.losses import LossConfig
from fusionocc_core.models import fusionocc_presets

def {name}() -> Recipe:
    return Recipe(preset="fusionocc-tiny", model=fusionocc_presets.fusionocc_tiny(), loss=LossConfig())
"""


def test_a_folder_gives_the_recipes_of_all_its_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(RECIPE.format(name=name))
    assert list(list_recipes(tmp_path)) == ["one", "two"]
    assert find_recipe("two", tmp_path)[1].preset == "fusionocc-tiny"
    assert find_recipe(f"{tmp_path}/one.py:one", SHIPPED)[0] == "one"
    with pytest.raises(ValueError, match=r"'on': not in .*one"):
        find_recipe("on", tmp_path)
    (tmp_path / "three.py").write_text(RECIPE.format(name="two"))
    with pytest.raises(ValueError, match=r"two\.py: another file of .* has a recipe 'two' too"):
        list_recipes(tmp_path)


def test_every_shipped_recipe_can_be_made() -> None:
    recipes = list_recipes(SHIPPED)
    assert {"fusionocc_base", "flashocc_m1", "flashfusion_mini_simulated_cpu"} <= set(recipes)
    for name, make in recipes.items():
        assert make().preset, name
        assert "Expected:" in (make.__doc__ or ""), name


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file of recipes"):
        find_recipe(f"{tmp_path}/none.py:one", SHIPPED)
    with pytest.raises(ValueError, match=r"expected a name, or FILE\.py:NAME"):
        find_recipe("recipes.txt:one", SHIPPED)


def test_the_two_gaussian_networks_for_a_cpu_have_one_budget():
    recipes = {
        name: find_recipe(f"{name}_tiny_simulated_cpu", SHIPPED)[1] for name in ("gaussianformer2", "gaussianfusion")
    }
    one, other = (recipe.train for recipe in recipes.values())
    assert one == other
    assert one.epochs < 1
