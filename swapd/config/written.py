"""Values as people write them: on a command line, and on one line of YAML. Pure."""

from __future__ import annotations

from datetime import date
from typing import Any, get_args, get_origin

import msgspec
import yaml

from swapd.config.schema import CustomModel
from swapd.config.typed import shapes


def flow_text(value: object) -> str:
    """The value on one line, so that it can stand anywhere in a YAML text."""
    text: str = yaml.dump(
        [value],
        Dumper=_Dumper,
        default_flow_style=True,
        allow_unicode=True,
        sort_keys=False,
        width=2**30,
    )
    return text.rstrip("\n")[1:-1]


def value_of(key: str, text: str) -> Any:
    """What somebody means who sets a key of a model to this text.

    Text is text for a key that wants text; a list may be given with commas; the rest is YAML on one
    line. In a section of anything, what YAML takes for a truth value or a number is one; dates and
    what YAML can't read are text. What fits the key is for the schema to say.
    """
    top, _, inner = key.partition(".")
    shape = shapes(CustomModel).get(top)
    kinds = _kinds(shape.type) if shape is not None and not inner else {str}
    if shape is not None and inner and shape.nested is not None:
        within = shapes(shape.nested).get(inner)
        kinds = _kinds(within.type) if within is not None else {str}
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


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write everything out."""
        return True


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Text of several lines in double quotes, which have a sign for a line's end."""
    node: yaml.ScalarNode = dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    )
    return node


_Dumper.add_representer(str, _write_text)
