"""Grammars of schemas, and checks of grammars, without a model."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.grammar import gbnf
from workers.grammar.json_scalars import LengthBounds, numbers
from workers.grammar.json_schema import SchemaError, schema_grammar


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        (False, "admits nothing"),
        (5, "is no object"),
        ({"type": "strin"}, "no type 'strin'"),
        ({"enum": []}, "`enum` must be a list"),
        ({"type": "integer", "enum": ["a"]}, "admits nothing"),
        ({"$ref": "https://example.org/schema"}, "does not lead into the schema"),
        ({"$ref": "#/$defs/gone"}, "leads nowhere"),
        ({"allOf": [{"$ref": "#"}, {"type": "object"}]}, "without end"),
        ({"not": {}}, "can't enforce `not`"),
        ({"type": "array", "uniqueItems": True}, "can't enforce `uniqueItems`"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "No number"),
        ({"type": "number", "minimum": "3"}, "must be a number"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "less than the required minimum"),
        ({"type": "string", "maxLength": 10**6}, "2000 or less"),
        ({"type": "string", "pattern": "a(?=b)"}, "look-around"),
        ({"type": "string", "pattern": "(a"}, "not closed"),
        ({"type": "string", "pattern": "a)"}, "no open parenthesis"),
        ({"type": "string", "pattern": "[z-a]"}, "ends before it begins"),
        ({"type": "string", "pattern": "[a"}, "is incomplete"),
        ({"type": "string", "pattern": "\\bword"}, "is not supported"),
        ({"type": "string", "pattern": "a{3,1}"}, "no valid repetition"),
        ({"properties": {"a": False}, "required": ["a"]}, "admits nothing"),
        (
            {"properties": {}, "required": ["a"], "additionalProperties": False},
            "'a' is required and not allowed",
        ),
        ({"type": "object", "properties": {"a": {}}, "minProperties": 2}, "`minProperties`"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "No type is left"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "differ in their `pattern`"),
    ],
    ids=str,
)
def test_schemas_without_a_grammar_are_rejected(schema: Any, sentence: str) -> None:
    with pytest.raises(SchemaError) as caught:
        schema_grammar(schema)
    assert sentence in str(caught.value)


def test_lenient_mode_ignores_keywords_it_can_not_enforce() -> None:
    schema = {"type": "array", "items": {"type": "null"}, "uniqueItems": True}
    assert schema_grammar(schema, lenient=True) == schema_grammar(
        {key: value for key, value in schema.items() if key != "uniqueItems"}
    )


def test_an_empty_branch_is_dropped() -> None:
    branches = [{"type": "integer", "minimum": 9}, {"type": "null"}]
    assert schema_grammar({"anyOf": branches, "maximum": 5}) == schema_grammar(
        {"anyOf": [{"type": "null", "maximum": 5}]}
    )


def test_a_deeply_nested_schema_is_rejected() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(900):
        schema = {"type": "array", "items": schema}
    with pytest.raises(SchemaError):
        schema_grammar(schema)


ENDS = st.one_of(st.none(), st.decimals(-50, 50, places=1))


@given(ENDS, ENDS, st.booleans(), st.booleans(), st.decimals(-60, 60, places=2))
def test_bounds_are_kept(
    low: Decimal | None, high: Decimal | None, above: bool, below: bool, value: Decimal
) -> None:
    bounds = LengthBounds(low, high, above and low is not None, below and high is not None)
    alternatives = numbers(bounds)
    written = any(derives(text, f"{value:f}") for text in alternatives)
    whole = any(derives(text, f"{int(value)}") for text in alternatives)
    if not bounds.none:
        assert not written or bounds.holds(value)
        assert whole == bounds.holds(Decimal(int(value)))


def derives(body: str, text: str) -> bool:
    """Return True if a regular grammar, of terminals and sets alone, derives `text`."""
    import re

    pattern = re.sub(r'"((?:[^"\\]|\\.)*)"', lambda found: f"(?:{re.escape(found[1])})", body)
    return re.fullmatch(pattern.replace(" ", ""), text) is not None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no rule root"),
        ("foo", "line 1, column 1: a rule was expected"),
        ('foo ::= "a"', "no rule root"),
        ('root ::= "a" b', "column 14: there is no rule b"),
        ('root ::= "a"\n  | ("b"', "line 2, column 5: the parenthesis is never closed"),
        ('root ::= "a")', "no open parenthesis"),
        ('root ::= "a', "is not allowed there"),
        ("root ::= [a", "is not allowed there"),
        ('root ::= "a" | * "b"', "there is nothing to repeat"),
        ('root ::= "a"{3,1}', "{3,1} ends before it begins"),
        ('root ::= "a"{5000}', "more than 2000 times"),
        ('root ::= "a"+*', "a repetition is repeated"),
        ("root ::= [^]", "the set of characters is empty"),
        ("root ::= root", "rule root begins with itself"),
        ('root ::= ("" | "a"?) x\nx ::= "b"? root', "begins with itself"),
        ('root ::= ("a"?)*', "rule root repeats an item that may be empty"),
        ('root ::= x{2}\nx ::= "a"* | "b"', "repeats an item that may be empty"),
        ('root ::= !<[5]> "a"', "is not allowed there"),
        (f"root ::= {'(' * 200}", "more than 100 parentheses"),
        ('root ::= "\x00"', "zero byte"),
        ("#" * 1_000_001, "more than 1000000 characters"),
        ('root ::= s\ns ::= "a" s "b"? | "a" s "c"? | "a"', "too ambiguous"),
        ('root ::= a\na ::= "[" (a | b)* "]"\nb ::= "[" (a | b)* "]"', "too ambiguous"),
    ],
    ids=lambda text: str(text)[:30],
)
def test_grammars_that_llama_cpp_must_not_get(text: str, sentence: str) -> None:
    with pytest.raises(gbnf.GrammarError) as caught:
        gbnf.check(text)
    assert sentence in str(caught.value)


def test_two_similar_lists_are_too_ambiguous() -> None:
    """Use two rules that a bracket may open, of which llama.cpp follows both."""
    items = {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}
    array = {"type": "array", "items": items}
    schema = {"$defs": {"a": array, "b": {**array, "maxItems": 3}}, "$ref": "#/$defs/a"}
    with pytest.raises(gbnf.GrammarError, match="too ambiguous"):
        gbnf.check(schema_grammar(schema))
    del items["anyOf"][1]
    gbnf.check(schema_grammar(schema))


@pytest.mark.parametrize(
    "text",
    [
        'root ::= [a-z]{0,500} [a-z]{0,500} "."',
        'root ::= ("a" "b"* | "a" "c"*)+ "."',
        "root ::= (" + " | ".join(f'"w{n}x"' for n in range(2000)) + ') "\\n" root?',
        'root ::= e\ne ::= t (("+" | "-") t)*\nt ::= [0-9]+ | "(" e ")"',
        'root ::= "[" (root ("," root)*)? "]" | "{" ("\\"a\\":" root)? "}" | [^\\]\\["\\n]+',
    ],
    ids=lambda text: text[:30],
)
def test_bounded_ambiguity_is_accepted(text: str) -> None:
    gbnf.check(text)


def test_a_grammar_with_all_notations_is_accepted() -> None:
    gbnf.check(
        'root ::= item+ (ws | "\\"" [^\\]\\n]* # a comment "{\n  | .) {2,3}\n'
        'item ::= [b] ("(" root ")")? | ws{2} "x" ws{1,}\r\n\nws ::=\n  [ \\t]'
    )


@given(st.text())
def test_a_literal_is_one_terminal(text: str) -> None:
    gbnf.check(f"root ::= {gbnf.literal(text)}")
