"""Configuration files: TOML parsed once, at the edge, into a struct. What doesn't fit names the key and the nearest valid one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tvmflow.errors import ConfigError, nearest

T = TypeVar("T")

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*?)`(?: - at `\$(?P<path>.*)`)?$")
_CHOICE = re.compile(r"Invalid enum value (?P<name>'.*?'|\S+)(?: - at `\$(?P<path>.*)`)?$")
_STEP = re.compile(r"\.([^.\[]+)|\[(?:\d+|\.\.\.)\]")


def read_toml(path: Path, type: type[T]) -> T:
    """The struct that a TOML file holds.

    Raises ConfigError for a file that can't be read, is no TOML, or doesn't fit ``type``; unknown keys and values are answered
    with the nearest valid one.
    """
    try:
        return msgspec.toml.decode(path.read_bytes(), type=type)
    except OSError as error:
        raise ConfigError(f"can't read the file: {error.strerror}", where=str(path)) from error
    except msgspec.ValidationError as error:
        raise ConfigError(str(error), where=str(path), remedy=_remedy(str(error), type)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path)) from error


def _remedy(message: str, type: Any) -> str:
    """Nearest valid key or value for msgspec's message about ``type``; empty when it is about something else."""
    for pattern in (_UNKNOWN, _CHOICE):
        match = pattern.search(message)
        if match:
            return nearest(match["name"].strip("'"), _valid(msgspec.inspect.type_info(type), match["path"] or ""))
    return ""


def _valid(node: Any, path: str) -> list[str]:
    """Keys or values that are valid at ``path`` (``.rules[0].layer``) below a type."""
    for step in _STEP.finditer(path):
        node = _below(node, step[1])
    if isinstance(node, msgspec.inspect.UnionType):
        node = next(t for t in node.types if isinstance(t, msgspec.inspect.StructType | msgspec.inspect.LiteralType))
    if isinstance(node, msgspec.inspect.LiteralType):
        return [str(v) for v in node.values]
    return [f.encode_name for f in node.fields]


def _below(node: Any, field: str | None) -> Any:
    """Type of a field of a struct, or of an item of a container (``field`` None)."""
    if isinstance(node, msgspec.inspect.UnionType):
        containers = (msgspec.inspect.StructType, msgspec.inspect.VarTupleType, msgspec.inspect.ListType)
        node = next(t for t in node.types if isinstance(t, containers))
    if field is None or isinstance(node, msgspec.inspect.DictType):
        return node.value_type if isinstance(node, msgspec.inspect.DictType) else node.item_type
    return next(f.type for f in node.fields if f.encode_name == field)
