"""Property tests: no content of a file raises an exception other than ConfigError."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from swapd.config.custom_models import parse_custom_models
from swapd.config.decode import field_shapes
from swapd.config.errors import ConfigError
from swapd.config.schema import CustomModelConfig, ServerConfig
from swapd.config.units import parse_size, show_size
from swapd.config.yaml_dump import dump_yaml
from tests.config.reading import read
from tests.config.test_load import LLAMA_SWAP

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["${PORT}", "${worker}", "${worker} -np ${PORT}", "a ${PORT}", "${env.X}", "${a}", "80%",
         "8 GiB", "http://[", "http://a:b", "none", "K=V", "'", "\\", "x --ctx-size 9e9"]
    ),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
_MODELS = st.dictionaries(
    st.text(max_size=5),
    st.dictionaries(st.sampled_from(sorted(field_shapes(CustomModelConfig))), _VALUES, max_size=6)
    | _VALUES,
    max_size=3,
)
_CONFIGS = st.builds(
    lambda top, models: {**top, "models": models},
    st.dictionaries(st.sampled_from(sorted(field_shapes(ServerConfig))), _VALUES, max_size=6),
    _MODELS | _VALUES,
)


def check_only_config_errors(text: str) -> None:
    try:
        read(text, {"X": "1"})
    except ConfigError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.message
            assert problem.line <= sum(map(text.count, "\n\r\x85\u2028\u2029")) + 2
    try:
        parse_custom_models(text, {"X": "1"})
    except ConfigError as error:
        assert error.problems


@settings(deadline=None)
@given(st.text())
@example("\ud800")
@example("\x00")
@example("a: 0b")
@example("ttl: " + "9" * 5000)
@example("ttl: 0o7_")
@example("ttl: 1:2:3.5")
@example("a: !!bool 3")
@example("--- a\n--- b")
@example("%YAML 9.9\n---\na: b")
@example("memory: {budget: " + "9" * 30 + " TiB}\nmodels: {}")
def test_any_text_loads_or_raises_config_error(text: str) -> None:
    check_only_config_errors(text)


@settings(max_examples=150, deadline=None)
@given(_CONFIGS)
def test_any_values_under_known_keys_load_or_raise_config_error(config: object) -> None:
    check_only_config_errors(dump_yaml(config))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_valid_file_with_a_replaced_piece_loads_or_raises_config_error(
    data: st.DataObject,
) -> None:
    start = data.draw(st.integers(0, len(LLAMA_SWAP)))
    end = data.draw(st.integers(start, min(start + 20, len(LLAMA_SWAP))))
    piece = data.draw(st.text(alphabet="${}[]&*!|>'\"#%@`-:, \n\tab0", max_size=6))
    check_only_config_errors(LLAMA_SWAP[:start] + piece + LLAMA_SWAP[end:])


@settings(deadline=None)
@given(st.integers(0, 2**60))
def test_a_formatted_size_parses_to_about_the_same(size: int) -> None:
    assert abs(parse_size(show_size(size)) - size) <= size * 0.06
