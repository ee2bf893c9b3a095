"""Fuzz tests: any content of a GGUF file, a `.env` or an edited file is handled or reported."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from swapd.config.env import read_env, sync_settings
from swapd.config.errors import ConfigError
from swapd.config.yaml_edit import EditError, set_value, unset
from swapd.gguf.llama_flags import LlamaFlags
from swapd.gguf.memory_estimate import estimate, fitting_context
from swapd.gguf.model_info import read_model_info
from swapd.gguf.reader import DamagedModelError, read_header, read_model_header
from tests.gguf.gguf_files import write_gguf

ANYWHERE = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_WORST = st.sampled_from(
    [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, struct.unpack("<Q", struct.pack("<d", 1e308))[0]]
)


def _check_file(path: Path) -> None:
    """Read the file as sync does: model info that can be stored, a context and an estimate."""
    try:
        info = read_model_info(read_header(path))
    except DamagedModelError as error:
        assert str(error).isprintable()
    else:
        assert msgspec.json.decode(msgspec.json.encode(info), type=type(info)) == info
        assert all(text.isprintable() for text in (info.title, info.architecture, info.kind))
        factors = info.memory_factors(path.stat().st_size)
        context = fitting_context(
            factors, 8192, 2**34, lambda n: estimate(factors, LlamaFlags(context=n))
        )
        assert 0 <= context <= 8192
        assert estimate(factors, LlamaFlags(context=context)) > 0
    try:
        read_model_header(path)
    except DamagedModelError as error:
        assert str(error).isprintable()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    return write_gguf(path, tokens=3, rows=1, kv_heads=[1, 2]).read_bytes()


@ANYWHERE
@given(st.data())
def test_a_gguf_file_with_any_number_replaced(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 8))
        content[at : at + 8] = struct.pack("<Q", data.draw(_WORST | st.integers(0, 2**64 - 1)))
    (tmp_path / "m.gguf").write_bytes(content)
    _check_file(tmp_path / "m.gguf")


@ANYWHERE
@given(st.data())
def test_a_gguf_file_cut_and_joined_anywhere(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    piece = data.draw(st.binary(max_size=20))
    (tmp_path / "m.gguf").write_bytes(whole[:start] + piece + whole[end:])
    _check_file(tmp_path / "m.gguf")


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _field(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


_SHAPES = [
    "block_count", "context_length", "embedding_length", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.sliding_window", "attention.sliding_window_pattern", "full_attention_interval",
    "attention.shared_kv_layers", "ssm.inner_size", "ssm.state_size", "vocab_size", "pooling_type",
]  # fmt: skip
_NUMBERS = st.one_of(
    st.tuples(st.just(10), st.integers(0, 2**64 - 1) | _WORST).map(
        lambda pair: (pair[0], struct.pack("<Q", pair[1]))
    ),
    st.tuples(st.just(5), st.integers(-(2**31), 2**31 - 1)).map(
        lambda pair: (pair[0], struct.pack("<i", pair[1]))
    ),
    st.floats(width=32).map(lambda value: (6, struct.pack("<f", value))),
    st.lists(st.floats(width=32), max_size=4).map(
        lambda values: (9, struct.pack(f"<IQ{len(values)}f", 6, len(values), *values))
    ),
    st.lists(st.integers(-9, 2**31 - 1), max_size=4).map(
        lambda values: (9, struct.pack(f"<IQ{len(values)}i", 5, len(values), *values))
    ),
    st.text(max_size=5).map(lambda text: (8, _text(text))),
)


@ANYWHERE
@given(
    st.sampled_from(["llama", "gemma3", "", "a\x1b[2J\n\u202e"]),
    st.dictionaries(st.sampled_from(_SHAPES), _NUMBERS, max_size=8),
    st.text(max_size=300),
)
def test_a_gguf_file_of_any_shape(
    tmp_path: Path, arch: str, shape: dict[str, tuple[int, bytes]], title: str
) -> None:
    fields = [
        _field("general.architecture", 8, _text(arch)),
        _field("general.name", 8, _text(title.replace("\ud800", ""))),
        *(_field(f"{arch}.{key}", kind, value) for key, (kind, value) in shape.items()),
    ]
    header = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(fields)) + b"".join(fields)
    (tmp_path / "m.gguf").write_bytes(header)
    _check_file(tmp_path / "m.gguf")


@ANYWHERE
@given(st.text() | st.text(alphabet="AB=\"'#$\\{}\n\r \texport_", max_size=40))
@example("A='")
@example("A=${A}")
@example("A=${B}\nB=${A}")
@example("DEFAULT_CTX_SIZE=1e400")
@example("PRESSURE_CHECK_INTERVAL=nan")
@example("MODELS_DIR=~nobody/x")
@example("MODEL_FOLDERS=:::a\x00b")
def test_any_dotenv_is_read_or_rejected_with_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / ".env").write_text(text, errors="surrogateescape", newline="")
    try:
        env = read_env(tmp_path, {"HOME": "/nowhere"})
        sync_settings(env)
    except ConfigError as error:
        assert error.problems


@ANYWHERE
@given(
    st.text(alphabet="models:bard{}[],&*!|>'\"#?-. \n\t123", max_size=60),
    st.sampled_from(["bard", "a: b", "x"]),
    st.sampled_from(["ttl", "adapters.a", "cmd"]),
)
@example("models:\n  ? bard\n  : ttl: 1\n", "bard", "ttl")
@example("1:\t", "bard", "ttl")
def test_any_text_is_edited_or_rejected_with_an_error(text: str, model: str, key: str) -> None:
    """Check for other exceptions only; the edit itself verifies its result."""
    try:
        set_value(text, model, key, "1")
        unset(text, model, key)
    except (EditError, ConfigError) as error:
        assert str(error)
