"""Recipes are functions in Python files; this finds them by name."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

from fusionocc_core.engine.overrides import nearest
from fusionocc_core.engine.recipe import Recipe


def list_recipes(source: Path) -> dict[str, Callable[[], Recipe]]:
    """The recipes of a file, or of all Python files of a folder: public functions that return a Recipe, by name.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: two files of the folder have a recipe of the same name.
    """
    if not source.is_dir():
        return _recipes_of(source)
    found: dict[str, Callable[[], Recipe]] = {}
    for file in sorted(source.glob("*.py")):
        recipes = _recipes_of(file)
        if twice := sorted(recipes.keys() & found.keys()):
            raise ValueError(f"{file}: another file of {source} has a recipe {twice[0]!r} too; rename one of them")
        found |= recipes
    return found


def _recipes_of(file: Path) -> dict[str, Callable[[], Recipe]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of recipes")
    spec = importlib.util.spec_from_file_location(f"recipes_{file.stem}", file)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and function.__module__ == module.__name__
        and get_type_hints(function).get("return") is Recipe
    }


def find_recipe(text: str, shipped: Path) -> tuple[str, Recipe]:
    """A recipe by its name in the shipped folder, or as FILE.py:NAME.

    Hyphens and underscores are the same.

    Returns:
        The name, and the recipe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such recipe in it; the message holds the nearest names.
    """
    file_name, separator, name = text.rpartition(":")
    source = Path(file_name) if separator else shipped
    if separator and source.suffix != ".py":
        raise ValueError(f"recipe {text!r}: expected a name, or FILE.py:NAME")
    known = list_recipes(source)
    wanted = name.replace("-", "_")
    if wanted not in known:
        raise ValueError(f"recipe {name!r}: not in {source}; {nearest(wanted, known)}")
    return wanted, known[wanted]()


def summary_of(function: Callable[[], Recipe]) -> str:
    """The first line of a recipe's docstring."""
    return (inspect.getdoc(function) or "").partition("\n")[0]
