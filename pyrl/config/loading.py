"""From a YAML file and `key=value` overrides to a `RunConfig`, with messages that name field, value and remedy."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pyrl.config.base import ConfigError
from pyrl.config.method import LossConfig
from pyrl.config.run import RunConfig


def load_config(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file, apply `a.b=value` overrides (value in YAML syntax), validate.

    Raises ConfigError: file missing or not a mapping, an override without `=`, an unknown key (the nearest known one is
    named), a wrong type or a value out of bounds.
    """
    return parse_config(load_tree(path, overrides), origin=str(path))


def load_tree(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The file as a mapping with the overrides applied, not yet validated; raises as `load_config`."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist")
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}, not a mapping of config keys")
    for override in overrides:
        _apply_override(tree, override)
    return tree


def parse_config(tree: dict[str, Any], origin: str = "config") -> RunConfig:
    """Validate a mapping; errors as in `load_config`."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(f"  {_describe(e)}" for e in error.errors())
        raise ConfigError(f"{origin}:\n{problems}") from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        child = node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {part!r} is a value, not a section")
        node = child
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: {error}") from error
    if isinstance(node[last], str):  # YAML 1.1 reads 1e-3 as a string
        try:
            node[last] = float(node[last])
        except ValueError:
            pass


def _describe(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        nearest = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
        return f"{'.'.join(location)}: unknown key; {hint}"
    if error["type"] == "missing":
        return f"{'.'.join(location)}: required but not given.{_field_help(location)}"
    where = ".".join(location) or "config"
    return f"{where}: {error['msg']} (got {error['input']!r})" if location else f"{where}: {error['msg']}"


def _section(location: list[str]) -> type[BaseModel] | None:
    """The config class at a dotted location; a union member is addressed by its tag."""
    current: Any = RunConfig
    for part in location:
        losses = get_args(get_args(LossConfig)[0])
        members = {get_args(c.model_fields["name"].annotation)[0]: c for c in losses}
        if part in members:
            current = members[part]
            continue
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return None
        field = current.model_fields.get(part)
        if field is None:
            return None
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _known_keys(location: list[str]) -> list[str]:
    section = _section(location)
    return list(section.model_fields) if section else []


def _field_help(location: list[str]) -> str:
    section = _section(location[:-1])
    field = section.model_fields.get(location[-1]) if section else None
    return f" {' '.join(field.description.split())}" if field is not None and field.description else ""
