"""Recipes: the last matching rule wins, and no misspelling stays silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvmflow.errors import ConfigError
from tvmflow.quantize.plan import Group, Plan, Site
from tvmflow.quantize.recipe import (
    QuantConfig,
    Recipe,
    Rule,
    WeightChange,
    describe_unused,
    load_recipe,
    recipe_files,
    unused_rules,
)

HEAD = 'schema = 1\nname = "mine"\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_the_last_matching_rule_wins_and_changes_the_default_only(tmp_path: Path) -> None:
    recipe = load_recipe(
        written(
            tmp_path,
            HEAD
            + """
            [default.activation]
            observer = "percentile"
            percentile = 99.5
            [[rules]]
            layer = "/head/*"
            skip = true
            [[rules]]
            op = "conv2d"
            weight = { observer = "mse" }
            [[rules]]
            op = "conv2d"
            layer = "/head/last"
            activation = { symmetric = true }
            """,
        )
    )
    assert recipe.config_for("dense", "/head/fc") is None
    assert recipe.config_for("dense", "/body/fc") == recipe.default
    searched = recipe.config_for("conv2d", "/head/first")
    assert searched is not None
    assert (searched.weight.observer, searched.activation.observer) == ("mse", "percentile")
    last = recipe.config_for("conv2d", "/head/last")
    assert last is not None
    assert last.weight.observer == "minmax"
    assert (last.activation.symmetric, last.activation.percentile) == (True, 99.5)


def test_a_pattern_with_case_and_brackets() -> None:
    recipe = Recipe(1, "r", rules=(Rule(layer="/Block[12]/*", skip=True),))
    assert recipe.config_for("add", "/Block1/Add") is None
    assert recipe.config_for("add", "/block1/Add") == QuantConfig()
    assert recipe.config_for("add", "/Block3/Add") == QuantConfig()


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_shipped_recipes_load_carry_their_name_and_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert load_recipe(written(tmp_path, recipe.to_toml())) == recipe


def test_rules_round_trip(tmp_path: Path) -> None:
    recipe = Recipe(1, "r", rules=(Rule("dense", "a*", weight=WeightChange(per_channel=False)), Rule(layer="b", skip=True)))
    assert load_recipe(written(tmp_path, recipe.to_toml())) == recipe


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ('rulez = ["a"]', "'rules'"),
        ('[default.activation]\nobserver = "percentil"', "'percentile'"),
        ('[[rules]]\nweight = { observr = "mse" }', "'observer'"),
        ('[[rules]]\nop = "con2d"', "'conv2d'"),
        ("[[rules]]\nskp = true", "'skip'"),
    ],
)
def test_a_misspelling_offers_the_nearest_valid_word(text: str, offered: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(written(tmp_path, HEAD + text))
    assert f"did you mean {offered}?" in str(caught.value)
    assert "mine.toml" in caught.value.where


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("schema = 2\nname = 'r'", "newer"),
        ("schema = [", "not valid TOML"),
        ("schema = 1", "missing required field `name`"),
        (HEAD + "[default.activation]\npercentile = 30.0", "percentile"),
        (HEAD + "[[rules]]\nskip = true\nweight = { per_channel = true }", "can't change its config"),
        (HEAD + "[[rules]]\nop = 'input'\nskip = true", "can't be skipped"),
    ],
)
def test_invalid_recipes_are_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load_recipe(written(tmp_path, text))


def test_unknown_name_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        load_recipe("int88")
    with pytest.raises(ConfigError, match="No such file"):
        load_recipe(tmp_path / "absent.toml")


def test_rules_that_match_nothing_are_found() -> None:
    plan = Plan((Site("image", "input", (1, 4)),), (Group("/fc/Gemm", "dense", ("/fc/Gemm",), ("image",), "/fc/Gemm"),))
    wrong_op, wrong_name = Rule(op="conv2d", layer="/fc/*"), Rule(layer="/fc/Gem")
    recipe = Recipe(1, "r", rules=(Rule(layer="/fc/*"), wrong_op, Rule(op="input", layer="image"), wrong_name))
    unused = unused_rules(recipe, plan)
    assert unused == (wrong_op, wrong_name)
    assert "did you mean '/fc/Gemm'?" in describe_unused(unused, plan)[1]
