"""Values and pieces of a tree as YAML for people.

Values as people write them: on a command line, and on one line of YAML. Pure.
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
    """The value as YAML text: one entry a line, long lines unbroken, keys in the given order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)
    return text


class _Dumper(yaml.SafeDumper):
    """Writes our tree beside plain values, scalars with the text that their author chose."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write everything out: YAML's `&id001` is for machines."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        """Indent lists under their key, as people do."""
        super().increase_indent(flow, False)


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Lines as lines: a command of several is easier to read that way."""
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
    """The value on one line, so that it can stand anywhere in a YAML text."""
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
    """What somebody means who sets a key of a model to this text.

    Text is text for a key that wants text; a list may be given with commas; the rest is YAML on one
    line. In a section of anything, what YAML takes for a truth value or a number is one; dates and
    what YAML can't read are text. What fits the key is for the schema to say.
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
        # Then it is what it looks like, and the schema says what it should be.
        return text


def _free(text: str) -> Any:
    try:
        value = yaml.load(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        return text
    return text if isinstance(value, date) else value


def _is_of_anything(annotated: Any) -> bool:
    """Whether a schema's annotation is that of a section whose values may be anything."""
    inner = get_args(annotated)
    if hasattr(annotated, "__metadata__"):
        return _is_of_anything(inner[0])
    return get_origin(annotated) is dict and inner[1] is Any


def _kinds(annotated: Any) -> set[type]:
    """The types that a schema's annotation allows, lists and sections without what is in them."""
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


class _FlowDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write everything out."""
        return True


def _write_flow_text(dumper: _FlowDumper, text: str) -> yaml.ScalarNode:
    """Text of several lines in double quotes, which have a sign for a line's end."""
    node: yaml.ScalarNode = dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    )
    return node


_FlowDumper.add_representer(str, _write_flow_text)
