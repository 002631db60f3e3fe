"""Reads a domain's YAML and the `key=value` overrides of the command line, and refuses what is wrong in one line."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from training.config import DomainConfig
from training.errors import ConfigError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


def read_yaml(text: str) -> Any:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: It is not valid YAML, or a key stands twice in a mapping: PyYAML would take the last.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_doubled(node, set())
        return loader.construct_document(node)
    except ValueError as error:  # what looks like a date is made one: 2024-13-01 is none
        raise yaml.YAMLError(f"{error}; put a text that looks like a date or a number in quotes") from None
    finally:
        loader.dispose()


def _refuse_doubled(node: yaml.Node, looked_at: set[int]) -> None:
    """Look for keys that stand twice, before merge keys (`<<`) are put in place of what they name."""
    if id(node) in looked_at or isinstance(node, yaml.ScalarNode):
        return
    looked_at.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _refuse_doubled(one, looked_at)
        return
    seen: set[tuple[str, str]] = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} stands twice; keep one")
            seen.add((key.tag, key.value))
        _refuse_doubled(value, looked_at)


def load_config(path: Path, overrides: Iterable[str] = ()) -> DomainConfig:
    """Read `path`, apply `overrides` (`"training.epochs=5"`) and validate.

    A list entry is addressed by its index or its `name`: `sources.sample.catalogue.file=shop.csv`.

    Raises:
        ConfigError: The file cannot be read, a key is unknown (the message names the near match), a value is wrong, or
            the domain is not what the file is named after.
    """
    tree = _read_yaml(path)
    for override in overrides:
        _apply(tree, override)
    config = parse_config(tree, where=str(path))
    if config.domain != path.stem:  # of a copied file, it would become the next release of another domain
        raise ConfigError(
            f"{path}: domain: is {config.domain!r}, the file's name says {path.stem!r}; write domain: {path.stem}, or "
            f"name the file {config.domain}.yaml"
        )
    return config


def change_config(config: DomainConfig, values: Mapping[str, Any], *, where: str) -> DomainConfig:
    """A copy of `config` with the values at these dotted keys; `where` names them in an error.

    Raises:
        ConfigError: A key is unknown (the message names the near match) or a value is wrong.
    """
    tree = config.model_dump(mode="json", exclude_unset=True)
    for key, value in values.items():
        _set(tree, key, value, f"{where}: {key!r}")
    return parse_config(tree, where=where)


def parse_config(tree: Mapping[str, Any], *, where: str) -> DomainConfig:
    """Validate a config that is already a mapping; `where` names it in an error.

    Raises:
        ConfigError: A key is unknown or a value is wrong.
    """
    try:
        return DomainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error, tree)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give an existing file (--config; DOMAIN= of make)"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping with the keys {', '.join(DomainConfig.model_fields)}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"override {override!r}: write it as key=value, for example training.epochs=5")
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML; put it in quotes") from None
    _set(tree, key, value, f"override {override!r}")


def _set(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    parts = key.split(".")
    node: Any = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {}) if isinstance(node, dict) else node[_place(node, part, where)]
    if isinstance(node, dict):
        node[parts[-1]] = value
    elif isinstance(node, list):
        node[_place(node, parts[-1], where)] = value
    else:
        raise ConfigError(f"{where}: {'.'.join(parts[:-1])} is a value, not a section")


def _place(node: object, part: str, where: str) -> int:
    """The index of the list entry that `part` addresses, by its index or its name."""
    if not isinstance(node, list):
        raise ConfigError(f"{where}: {part!r} lies below a value, not a section")
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    named = {entry["name"]: place for place, entry in enumerate(node) if isinstance(entry, dict) and "name" in entry}
    if part in named:
        return named[part]
    raise ConfigError(f"{where}: no entry {part!r}; there are {', '.join(map(str, named)) or len(node)}")


def _first_problem(error: ValidationError, tree: Mapping[str, Any]) -> str:
    # An unknown key explains the others (a misspelt required key is also missing), so it comes first.
    problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in problem["loc"]) or "the config"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if problem["type"] == "missing":
        return f"{where} is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, (dict, list)) else f", got {given!r:.80}"
    return f"{where}: {message}{shown}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys the schema allows at `location`, found in the JSON schema that pydantic writes."""
    schema = DomainConfig.model_json_schema()
    node: dict[str, Any] = schema
    for part in location:
        named = node.get("properties", {})
        if isinstance(part, int):
            node = node.get("items", {})
        else:
            node = named[part] if part in named else node.get("additionalProperties") or {}
        for option in node.get("anyOf", []):
            if "$ref" in option:
                node = option
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return list(node.get("properties", {}))
