"""Values and pieces of a tree as YAML for people."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.resolver import Resolver

from swapd.config.tree import Mapping, Node, Scalar, Sequence


def write_yaml(value: object) -> str:
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


def _write_scalar(dumper: _Dumper, scalar: Scalar) -> yaml.ScalarNode:
    if isinstance(scalar.value, str):
        return _write_text(dumper, scalar.text)
    resolver: Any = Resolver()
    tag = resolver.resolve(yaml.ScalarNode, scalar.text, (True, False))
    node: yaml.ScalarNode = dumper.represent_scalar(tag, scalar.text)
    return node


def _write_sequence(dumper: _Dumper, sequence: Sequence) -> yaml.SequenceNode:
    return dumper.represent_list(sequence.items)


def _write_mapping(dumper: _Dumper, mapping: Mapping) -> yaml.MappingNode:
    nodes: dict[str, Node] = {key: entry.node for key, entry in mapping.entries.items()}
    return dumper.represent_dict(nodes)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(Scalar, _write_scalar)
_Dumper.add_representer(Sequence, _write_sequence)
_Dumper.add_representer(Mapping, _write_mapping)
