"""Edits of custom_models.yaml by command: only the intended lines change."""

# Messages stay on one line, so that they can be searched for.
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from swapd.config.decode import field_shapes
from swapd.config.errors import ConfigError
from swapd.config.schema import CustomModelConfig
from swapd.config.yaml_dump import dump_flow, parse_setting
from swapd.config.yaml_edit import EditError, set_value, unset
from swapd.library.overrides import set_overrides
from tests.config.reading import RAM
from tests.library.stores import DEMO, Machine

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "custom_models.yaml").read_text(encoding="utf-8")
FULL = """\
# mine
max_resident: 2   # two

models:
  # the poet
  bard:
    ttl: 3600   # an hour
    sampler_args: >-
      --temp 0.9
      --min-p 0.1

    aliases:   # his names
      - poet
      - will   # short

  # the girl
  alice: {ttl: 5, aliases: [a, "b, c"]}   # inline
  gemma3:27b:
  'quoted: name': {}   # nothing yet
# the end
memory: {budget: 1 GiB}
"""


@pytest.mark.parametrize(
    ("model", "key", "value", "old", "new"),
    [
        ("bard", "ttl", 60, "    ttl: 3600   # an hour\n", "    ttl: 60   # an hour\n"),
        (
            "bard", "sampler_args", "--temp 1",
            "    sampler_args: >-\n      --temp 0.9\n      --min-p 0.1\n",
            "    sampler_args: --temp 1\n",
        ),
        (
            "bard", "aliases", ["x", "y: z"],
            "    aliases:   # his names\n      - poet\n      - will   # short\n",
            "    aliases: [x, 'y: z']   # his names   # short\n",
        ),
        (
            "bard", "jinja", True,
            "      - will   # short\n", "      - will   # short\n    jinja: true\n",
        ),
        (
            "bard", "adapters.al", "a b.gguf",
            "      - will   # short\n", "      - will   # short\n    adapters:\n      al: a b.gguf\n",
        ),
        (
            "alice", "ttl", 6,
            "{ttl: 5, aliases", "{ttl: 6, aliases",
        ),
        ("alice", "jinja", True, '"b, c"]}', '"b, c"], jinja: true}'),
        ("alice", "adapters.x", "y", '"b, c"]}', '"b, c"], adapters: {x: y}}'),
        ("gemma3:27b", "ttl", 1, "  gemma3:27b:\n", "  gemma3:27b:\n    ttl: 1\n"),
        (
            "quoted: name", "ttl", 1, "  'quoted: name': {}   # nothing yet\n",
            "  'quoted: name':   # nothing yet\n    ttl: 1\n",
        ),
        (
            "neu: er", "ttl", 1, "   # nothing yet\n",
            "   # nothing yet\n  'neu: er':\n    ttl: 1\n",
        ),
    ],
)  # fmt: skip
def test_setting_a_key_changes_one_place(
    model: str, key: str, value: object, old: str, new: str
) -> None:
    assert FULL.count(old) == 1
    assert set_value(FULL, model, key, value) == FULL.replace(old, new)


@pytest.mark.parametrize(
    ("model", "key", "old", "new"),
    [
        ("bard", "ttl", "    ttl: 3600   # an hour\n", ""),
        ("bard", "aliases", "    aliases:   # his names\n      - poet\n      - will   # short\n", ""),
        ("alice", "ttl", "{ttl: 5, ", "{"),
        ("alice", "aliases", ', aliases: [a, "b, c"]', ""),
    ],
)  # fmt: skip
def test_unsetting_a_key_removes_one_place(model: str, key: str, old: str, new: str) -> None:
    assert FULL.count(old) == 1
    assert unset(FULL, model, key) == FULL.replace(old, new)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("", "models:\n  m:\n    ttl: 1\n"),
        ("# only this", "# only this\nmodels:\n  m:\n    ttl: 1\n"),
        ("a: 1", "a: 1\nmodels:\n  m:\n    ttl: 1"),
        ("models:", "models:\n  m:\n    ttl: 1"),
        ("models: {}  # c\n# d\n", "models:  # c\n  m:\n    ttl: 1\n# d\n"),
        ("models: {}\r\n# d\r\n", "models:\r\n  m:\r\n    ttl: 1\r\n# d\r\n"),
        ("models: {a: {}}", "models: {a: {}, m: {ttl: 1}}"),
        ("{}", "{models: {m: {ttl: 1}}}"),
        ("models:\n    a: {}\n", "models:\n    a: {}\n    m:\n      ttl: 1\n"),
        ("models:\n  m: # c\n", "models:\n  m: # c\n    ttl: 1\n"),
        ("models:\n  m:\n    <<: {ttl: 2}\n", "models:\n  m:\n    <<: {ttl: 2}\n    ttl: 1\n"),
        ("models:\n  m:\n    ttl: |\n      5\n\n# c", "models:\n  m:\n    ttl: 1\n\n# c"),
        ("models:\n  m:\n    ttl: &x 5\n", "models:\n  m:\n    ttl: 1\n"),
        ("models:\n  ? a\n  : ttl: 5\n", "models:\n  ? a\n  : ttl: 5\n  m:\n    ttl: 1\n"),
        (
            "models:\n  m:\n    ? ttl # c\n    # d\n    : 5 # e\n",
            "models:\n  m:\n    ? ttl # c\n    # d\n    : 1 # e\n",
        ),
    ],
)
def test_the_first_setting_creates_its_sections(text: str, made: str) -> None:
    assert set_value(text, "m", "ttl", 1) == made


def test_set_and_unset_restore_the_shipped_file() -> None:
    text = set_value(SHIPPED, "bard", "ttl", 60)
    text = set_value(text, "bard", "adapters.alice", "x.gguf")
    text = set_value(text, "alice", "cmd", ["a", "${PORT}"])
    for model, key in (("bard", "ttl"), ("alice", "cmd"), ("bard", "adapters.alice")):
        text = unset(text, model, key)
    assert text == SHIPPED


def test_comments_are_preserved_when_the_last_model_is_removed() -> None:
    text = "models:  # a\n  # b\n  m:\n    # c\n    ttl: 1\n  # d\n"
    assert unset(text, "m", "ttl") == "models: {}  # a\n  # b\n  # d\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models:\n  a: &x {ttl: 1}\n  m: *x\n", "models.m.ttl is laid out in a way that only you can edit: open custom_models.yaml"),
        ("models:\n  m:\n    ttl: &x 5\n  n: {ttl: *x}", "models.m.ttl is laid out in a way that only you can edit: open custom_models.yaml"),
        ("? models\n: {m: {ttl: 5}}", None),
        ("models: [m]", "models in custom_models.yaml is no section"),
        ("models: {m: 3}", "m in custom_models.yaml is no section"),
        ("models: {m: { # c\n}}", None),
    ],
)  # fmt: skip
def test_unsupported_layouts_are_rejected(text: str, sentence: str | None) -> None:
    try:
        made = set_value(text, "m", "ttl", 1)
    except EditError as error:
        assert sentence in (None, str(error))
    else:
        assert sentence is None
        assert yaml.safe_load(made)["models"]["m"] == {"ttl": 1}


def test_a_missing_key_cannot_be_unset() -> None:
    with pytest.raises(EditError, match=r"^custom_models\.yaml says nothing of ttl for far$"):
        unset(FULL, "far", "ttl")
    with pytest.raises(EditError, match="only you can edit"):
        unset("models: {m: {<<: {ttl: 2}, cmd: x}}", "m", "ttl")


_WORDS = st.sampled_from(["a", "b c", "x: y", "#", "'", "é", "on", "1", "-", "{", "a\nb", "", "~"])
_VALUES = st.recursive(
    _WORDS | st.integers(-9, 9) | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_WORDS, inner, max_size=2),
    max_leaves=4,
)
_MODELS = st.dictionaries(
    _WORDS, st.dictionaries(_WORDS, _VALUES, max_size=3) | st.none(), max_size=3
)
_COMMENTS = st.sampled_from(["", "", "   # c", "\n# d", "\n\n", "\n      # e: f"])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Draw a custom_models.yaml in some layout, with comments."""
    style = draw(st.sampled_from([False, None, True]))
    values = {"a": 1, "models": draw(_MODELS), "z": {"b": [2]}}
    text: str = yaml.safe_dump(
        values, default_flow_style=style, allow_unicode=True, sort_keys=False
    )
    if style is not True:
        lines = [
            line + draw(_COMMENTS)
            if line and '"' not in line and "'" not in line and "|" not in line
            else line
            for line in text.split("\n")
        ]
        text = "\n".join(lines)
    return text.replace("\n", draw(st.sampled_from(["\n", "\n", "\r\n"])))


@settings(max_examples=150, deadline=None)
@given(texts(), _WORDS, st.sampled_from(["ttl", "adapters.b c", "a"]), _VALUES)
@example("models: {}", "a", "ttl", "x")
def test_in_any_layout_only_the_value_changes(
    text: str, model: str, key: str, value: object
) -> None:
    try:
        before = yaml.safe_load(text)
    except yaml.YAMLError:
        assume(False)
    try:
        changed = set_value(text, model, key, value)
    except (EditError, ConfigError):
        return
    after = yaml.safe_load(changed)
    section = after["models"][model]
    for step in key.split(".", 1):
        section = section[step]
    assert section == value
    old = ((before["models"] or {}).get(model) or {}).get(key.partition(".")[0])
    removed = [line for line in text.splitlines() if line not in changed.splitlines()]
    # A value of several lines is removed with all of them; any other change is within one line.
    assert len(removed) <= (1 if not isinstance(old, (dict, list)) else 9)
    assert changed.count("#") >= text.count("#") - 3
    if old is None and not isinstance(value, dict):
        try:
            back = unset(changed, model, key)
        except EditError:
            return  # rejected, as above: this layout can only be edited by hand
        assert yaml.safe_load(back).get("z") == before.get("z")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("ttl", "60", 60), ("ttl", "soon", "soon"), ("sampler_args", "--temp 0.8", "--temp 0.8"),
        ("sampler_args", "5", "5"), ("aliases", "a, b", ["a", "b"]), ("aliases", "[a, 'b, c']", ["a", "b, c"]),
        ("aliases", "", []), ("jinja", "yes", True), ("cmd", "a ${PORT}", "a ${PORT}"),
        ("cmd", "[a, b]", ["a", "b"]), ("adapters", "{a: b}", {"a": "b"}), ("adapters.a", "1", "1"),
        ("filters.stripParams", "a,b", "a,b"), ("need", "8 GiB", "8 GiB"), ("stop_grace", "3", 3),
        ("metadata", "{a: [1]}", {"a": [1]}), ("metadata", "{", "{"), ("adapters", "a=b", "a=b"),
        ("chat_template_kwargs.enable_thinking", "false", False), ("chat_template_kwargs.n", "5", 5),
        ("metadata.x", "0.5", 0.5), ("metadata.x", "'5'", "5"), ("metadata.x", "two words", "two words"),
        ("metadata.x", "a: b: c", "a: b: c"), ("metadata.x", "2026-01-02", "2026-01-02"),
        ("metadata.x", "[1, a]", [1, "a"]), ("metadata.x", "2026-99-99", "2026-99-99"),
    ],
)  # fmt: skip
def test_a_value_from_the_command_line_has_the_type_of_its_key(
    key: str, text: str, value: object
) -> None:
    assert parse_setting(key, text) == value


@given(_VALUES)
def test_any_value_fits_on_a_line(value: object) -> None:
    text = dump_flow(value)
    assert "\n" not in text
    assert yaml.safe_load(f"a: {text}")["a"] == value
    assert yaml.safe_load(f"{{a: {text}}}")["a"] == value


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.put("models/gemma3/gemma3-27b.gguf", made.alice)
    text = FULL.replace("  gemma3:27b:\n", "  gemma3:27b: {}\n").replace("\n", "\r\n")
    (made.home / "custom_models.yaml").write_bytes(text.encode())
    return made


def set_keys(machine: Machine, model: str, keys: dict[str, str | None]) -> bool:
    home, env = machine.home, machine.env
    return set_overrides(home, env, DEMO, model, keys, now=4e9, total_memory=RAM).written


def test_a_model_is_set_by_any_spelling_of_its_name(machine: Machine) -> None:
    path = machine.home / "custom_models.yaml"
    assert set_keys(machine, "LS/Gemma3-27B.gguf", {"ctx_size": "512", "pinned": "true"})
    assert path.read_bytes().decode() == FULL.replace(
        "  gemma3:27b:\n", "  gemma3:27b:\n    ctx_size: 512\n    pinned: true\n"
    ).replace("\n", "\r\n")
    machine.sync()
    spec = machine.load().catalog.models["ls/gemma3:27b"]
    assert (spec.launch.context, spec.serving.pinned) == (512, True)
    assert not set_keys(machine, "gemma3", {"pinned": "true"})
    assert set_keys(machine, "gemma3", {"ctx_size": None})
    assert b"ctx_size" not in path.read_bytes()


@pytest.mark.parametrize(
    ("model", "keys", "sentence"),
    [
        ("barb", {"ttl": "1"}, "there is no model named barb; did you mean bard?"),
        ("bard", {"tttl": "1"}, "tttl: unknown key; did you mean ttl?"),
        ("bard", {"adapters.": "1"}, "adapters.: nothing stands behind the dot"),
        ("bard", {"ttl": "soon"}, "custom_models.yaml:7: models.bard.ttl: must be seconds, 0 for never or -1 for the default, not soon"),
        ("bard", {"adapters": "a"}, "custom_models.yaml:15: models.bard.adapters: must be a section with a path for each adapter's name, not a"),
        ("bard", {"aliases": "alice"}, "custom_models.yaml:12: models.bard.aliases[0]: alice is the name of a model"),
        ("bard", {"cmd": "x"}, "custom_models.yaml:15: models.bard.cmd: does not use ${PORT}, so proxy must say where the worker answers"),
        ("new", {"cmd": "x '"}, "custom_models.yaml:20: models.new.cmd: cannot be split into words: a quote is never closed"),
    ],
)  # fmt: skip
def test_an_invalid_result_is_not_written(
    machine: Machine, model: str, keys: dict[str, str | None], sentence: str
) -> None:
    path = machine.home / "custom_models.yaml"
    path.write_text(
        FULL.replace(
            "  gemma3:27b:\n  'quoted: name': {}   # nothing yet\n", "  gemma3:27b: {ttl: 3}\n"
        )
    )
    before = path.read_bytes(), path.stat().st_mtime_ns
    with pytest.raises((EditError, ConfigError)) as caught:
        set_keys(machine, model, keys)
    assert str(caught.value) == sentence
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_every_key_can_be_set() -> None:
    for key, shape in field_shapes(CustomModelConfig).items():
        value = "{}" if shape.nested is not None else "1"
        assert set_value(FULL, "bard", key, parse_setting(key, value)) != FULL
