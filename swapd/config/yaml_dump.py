"""Values and nodes as readable YAML, in blocks or on one line, and values from the command line.

Pure.
"""

from __future__ import annotations

from datetime import date
from typing import Any, get_args, get_origin

import msgspec
import yaml
from yaml.resolver import Resolver

from swapd.config.decode import find_shape
from swapd.config.schema import CustomModelConfig
from swapd.config.yaml_nodes import MappingNode, Node, ScalarNode, SequenceNode


def dump_yaml(value: object) -> str:
    """Dump the value as YAML text: one entry a line, lines unbroken, keys in the given order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)
    return text


class _Dumper(yaml.SafeDumper):
    """Dumper of plain values and of nodes, scalars with the text of their file."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write shared values in full; anchors such as `&id001` are hard to read."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        """Indent lists under their key."""
        super().increase_indent(flow, False)


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Represent text of several lines as a literal block, which is easier to read."""
    node: yaml.ScalarNode = dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )
    return node


def _write_scalar(dumper: _Dumper, scalar: ScalarNode) -> yaml.ScalarNode:
    if isinstance(scalar.value, str):
        return _write_text(dumper, scalar.text)
    resolver: Any = Resolver()
    tag = resolver.resolve(yaml.ScalarNode, scalar.text, (True, False))
    node: yaml.ScalarNode = dumper.represent_scalar(tag, scalar.text)
    return node


def _write_sequence(dumper: _Dumper, sequence: SequenceNode) -> yaml.SequenceNode:
    return dumper.represent_list(sequence.items)


def _write_mapping(dumper: _Dumper, mapping: MappingNode) -> yaml.MappingNode:
    nodes: dict[str, Node] = {key: entry.node for key, entry in mapping.entries.items()}
    return dumper.represent_dict(nodes)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(ScalarNode, _write_scalar)
_Dumper.add_representer(SequenceNode, _write_sequence)
_Dumper.add_representer(MappingNode, _write_mapping)


def dump_flow(value: object) -> str:
    """Dump the value on one line, for use anywhere in a YAML text."""
    text: str = yaml.dump(
        [value],
        Dumper=_FlowDumper,
        default_flow_style=True,
        allow_unicode=True,
        sort_keys=False,
        width=2**30,
    )
    return text.rstrip("\n")[1:-1]


def parse_setting(key: str, text: str) -> Any:
    """Parse the text of a command line as the value of a model's key.

    A key of type text takes the text itself; a list may be given with commas; anything else is YAML
    on one line. In a section of arbitrary values, YAML booleans and numbers keep their type; dates
    and invalid YAML are text. The schema checks the value later.
    """
    top, _, inner = key.partition(".")
    found = find_shape(CustomModelConfig, top)
    shape = found[1] if found is not None else None
    kinds = _kinds(shape.type) if shape is not None and not inner else {str}
    if shape is not None and inner and shape.nested is not None:
        within = find_shape(shape.nested, inner)
        kinds = _kinds(within[1].type) if within is not None else {str}
    if shape is not None and inner and _is_of_anything(shape.type):
        return _free(text)
    if kinds == {str} or (str in kinds and not text.lstrip().startswith("[")):
        return text
    if list in kinds and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return yaml.load(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        # The schema reports the text as a value of the wrong type.
        return text


def _free(text: str) -> Any:
    try:
        value = yaml.load(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        return text
    return text if isinstance(value, date) else value


def _is_of_anything(annotated: Any) -> bool:
    """Return True if a schema's annotation is a section of arbitrary values."""
    inner = get_args(annotated)
    if hasattr(annotated, "__metadata__"):
        return _is_of_anything(inner[0])
    return get_origin(annotated) is dict and inner[1] is Any


def _kinds(annotated: Any) -> set[type]:
    """Return the types that an annotation allows, lists and sections without their item types."""
    if isinstance(annotated, type) and issubclass(annotated, msgspec.Struct):
        return {dict}
    origin = get_origin(annotated)
    if origin in (list, dict):
        return {origin}
    inner = get_args(annotated)
    if not inner:
        return {annotated}
    if hasattr(annotated, "__metadata__"):
        inner = inner[:1]
    return {kind for one in inner for kind in _kinds(one)}


class _FlowDumper(_Dumper):
    """Dumper of values on one line."""


def _write_flow_text(dumper: _FlowDumper, text: str) -> yaml.ScalarNode:
    """Represent text of several lines in double quotes, with escaped line ends."""
    node: yaml.ScalarNode = dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    )
    return node


_FlowDumper.add_representer(str, _write_flow_text)
