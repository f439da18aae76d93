"""Recipes: which layers become integers and how their parameters are found. Apply this config to this operator under this name.

A recipe is a TOML file::

    schema = 1
    name = "careful"

    [default.activation]
    observer = "percentile"
    percentile = 99.99

    [[rules]]                      # leave the classifier in float
    op = "dense"
    layer = "/classifier/*"
    skip = true

    [[rules]]                      # every depthwise convolution: search the weight scales
    op = "depthwise"
    weight = { observer = "mse" }
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tvmflow.config import read_toml
from tvmflow.errors import ConfigError, nearest
from tvmflow.quantize.plan import Plan

SCHEMA = 1
DEFAULT = "int8"

OPERATORS = (
    "input", "conv2d", "depthwise", "dense", "matmul", "scale_shift", "add", "mul", "max_pool", "avg_pool", "mean", "lookup",
    "concat", "reshape", "transpose", "slice", "pad", "resize", "split", "copy", "broadcast", "repeat", "tile", "flip", "take",
)  # fmt: skip
"""Operators that a rule may name: those of a plan's integer groups, and ``input``, the model's own input."""

WeightObserver = Literal["minmax", "mse"]
ActivationObserver = Literal["minmax", "percentile", "mse"]
Percent = Annotated[float, Meta(gt=50, le=100)]


class WeightConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Symmetric int8 weights: ``w = scale * q``, q in [-127, 127]."""

    per_channel: bool = True
    """One scale per output channel, or one for the whole tensor."""
    observer: WeightObserver = "minmax"
    """``minmax`` keeps the largest weight; ``mse`` clips where that lowers the squared error."""


class ActivationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """int8 activations, one scale and zero point per tensor."""

    observer: ActivationObserver = "minmax"
    """``minmax`` keeps every value, ``percentile`` drops the rarest, ``mse`` clips where that lowers the squared error."""
    percentile: Percent = 99.99
    """Share of the values at or below the upper bound, in percent, and at or above the lower one; for ``percentile`` only."""
    symmetric: bool = False
    """Zero point 0: half of the codes are lost on tensors that are never negative."""


class QuantConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one layer is quantized: its weights, and the activation that it writes."""

    weight: WeightConfig = WeightConfig()
    activation: ActivationConfig = ActivationConfig()


class WeightChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rule changes of the default :class:`WeightConfig`."""

    per_channel: bool | UnsetType = UNSET
    observer: WeightObserver | UnsetType = UNSET


class ActivationChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rule changes of the default :class:`ActivationConfig`."""

    observer: ActivationObserver | UnsetType = UNSET
    percentile: Percent | UnsetType = UNSET
    symmetric: bool | UnsetType = UNSET


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Apply these changes to this operator under this name pattern."""

    op: str = "*"
    """One of :data:`OPERATORS`, or ``*``."""
    layer: str = "*"
    """Shell pattern over original layer names (``*``, ``?``, ``[...]``); case matters."""
    skip: bool = False
    """Leave the layer in float."""
    weight: WeightChange = WeightChange()
    activation: ActivationChange = ActivationChange()

    def matches(self, op: str, layer: str) -> bool:
        return self.op in ("*", op) and fnmatchcase(layer, self.layer)

    def __str__(self) -> str:
        return f"op={self.op!r} layer={self.layer!r}"


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The default config and the rules that change it for some layers."""

    schema: int
    name: str
    default: QuantConfig = QuantConfig()
    rules: tuple[Rule, ...] = ()
    center: bool = True
    """Move channel means of linear tensors into the biases around them (:mod:`tvmflow.quantize.center`); free at run time."""
    description: str = ""

    def config_for(self, op: str, layer: str) -> QuantConfig | None:
        """Config of a layer, None when it stays float. The last matching rule wins; it changes the default, not earlier rules."""
        for rule in reversed(self.rules):
            if rule.matches(op, layer):
                return None if rule.skip else _changed(self.default, rule)
        return self.default

    def to_toml(self) -> str:
        """The recipe as :func:`load_recipe` reads it."""
        return msgspec.toml.encode(self).decode()


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe that ships with tvmflow, by name, or a TOML file of the user's.

    Raises ConfigError for an unknown name, key, value or operator, each with the nearest valid one.
    """
    shipped = recipe_files()
    if str(name_or_path) in shipped:
        path = shipped[str(name_or_path)]
    elif str(name_or_path).endswith(".toml"):
        path = Path(name_or_path)
    else:
        raise ConfigError(
            f"unknown recipe {str(name_or_path)!r}", remedy=f"{nearest(str(name_or_path), shipped)}; or a .toml file"
        )
    recipe = read_toml(path, Recipe)
    if recipe.schema > SCHEMA:
        raise ConfigError(
            f"schema {recipe.schema} is newer than this tvmflow knows ({SCHEMA})", where=str(path), remedy="upgrade tvmflow"
        )
    for number, rule in enumerate(recipe.rules):
        _check(rule, f"{path}: rules[{number}]")
    return recipe


def recipe_files() -> dict[str, Path]:
    """Recipes that ship with tvmflow, by name."""
    return {p.stem: p for p in sorted((Path(__file__).parent / "recipes").glob("*.toml"))}


def unused_rules(recipe: Recipe, plan: Plan) -> tuple[Rule, ...]:
    """Rules that match no layer and no input of the plan: most likely a misspelt pattern, so callers must show them."""
    named = [(g.op, g.layer) for g in plan.groups] + [("input", s.id) for s in plan.sites if s.role == "input"]
    return tuple(r for r in recipe.rules if not any(r.matches(op, layer) for op, layer in named))


def describe_unused(rules: Iterable[Rule], plan: Plan) -> list[str]:
    """A sentence for each unused rule, with the nearest layer name."""
    layers = [g.layer for g in plan.groups]
    return [f"the recipe's rule {rule} matches no layer; {_closest(rule.layer, layers)}" for rule in rules]


def _closest(pattern: str, layers: list[str]) -> str:
    hint = nearest(pattern, layers)
    return hint.split("? ")[0] + "?" if hint.startswith("did you mean") else "`tvmflow inspect MODEL` lists them"


def _check(rule: Rule, where: str) -> None:
    if rule.op not in ("*", *OPERATORS):
        raise ConfigError(f"unknown operator {rule.op!r}", where=where, remedy=nearest(rule.op, ["*", *OPERATORS]))
    if rule.skip and (rule.weight != WeightChange() or rule.activation != ActivationChange()):
        raise ConfigError(
            "a rule that skips a layer can't change its config as well", where=where, remedy="remove one of the two"
        )
    if rule.skip and rule.op == "input":
        raise ConfigError("the model's input can't be skipped", where=where, remedy="skip the layers that read it")


C = TypeVar("C", bound=msgspec.Struct)


def _changed(default: QuantConfig, rule: Rule) -> QuantConfig:
    return QuantConfig(_merge(default.weight, rule.weight), _merge(default.activation, rule.activation))


def _merge(config: C, change: msgspec.Struct) -> C:
    given: dict[str, Any] = {k: v for k, v in msgspec.structs.asdict(change).items() if v is not UNSET}
    return msgspec.structs.replace(config, **given)
