"""API keys, hosts, origins and certificates in the configuration."""

from __future__ import annotations

import hashlib

import pytest

from swapd.config.access import hash_of
from tests.config.reading import faults, read

BARD = "models:\n  bard: {cmd: 'serve --port ${PORT}', aliases: [will]}\n"
SUM = hash_of("sk-one")


def test_a_hash_is_the_sha256_sum_of_the_key() -> None:
    assert hash_of("sk-one") == f"sha256:{hashlib.sha256(b'sk-one').hexdigest()}"


def test_keys_are_read_with_their_permissions() -> None:
    options = "models: [will, 'b*'], rate: 60, priority: -1"
    loaded = read(f"keys:\n  laptop: {{hash: '{SUM}', {options}}}\n{BARD}")
    (key,) = loaded.settings.access.keys
    assert (key.name, key.models, key.admin, key.rate) == ("laptop", ("will", "b*"), False, 60)
    assert key.priority == -1
    assert f"sha256:{key.digest.hex()}" == SUM
    assert loaded.warnings == ()


def test_a_key_without_options_opens_all_models_and_no_admin_actions() -> None:
    (key,) = read(
        f"keys: {{a: {{hash: '{SUM.upper().replace('SHA', 'sha')}'}}}}\n{BARD}"
    ).settings.access.keys
    assert (key.models, key.admin, key.rate, key.priority) == (("*",), False, 0, 0)


def test_api_keys_of_llama_swap_open_everything() -> None:
    loaded = read("apiKeys: [sk-one, '${env.OTHER}', 123]\n" + BARD, {"OTHER": "sk-two"})
    keys = loaded.settings.access.keys
    assert [f"sha256:{key.digest.hex()}" for key in keys] == [
        hash_of("sk-one"),
        hash_of("sk-two"),
        hash_of("123"),
    ]
    assert all(key.admin and key.models == ("*",) and not key.rate for key in keys)


def test_a_pattern_without_a_matching_model_gives_a_warning() -> None:
    loaded = read(f"keys:\n  a:\n    hash: {SUM}\n    models: [brad, '*']\n{BARD}")
    assert [str(w) for w in loaded.warnings] == [
        "config.yaml:4: keys.a.models[0]: there is no model brad now; did you mean bard?"
    ]


SECRET = "sk-" + "5ecret" * 8


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            f"keys:\n  a: {{hash: {SECRET}}}\n",
            "config.yaml:2: keys.a.hash: must be sha256: and 64 hexadecimal digits; key add",
        ),
        (
            f"keys:\n  a: {{hash: [{SECRET}]}}\n",
            "config.yaml:2: keys.a.hash: must be sha256: and 64 hexadecimal digits",
        ),
        (
            f"keys:\n  a: {SECRET}\n",
            "config.yaml:2: keys.a: must be a section with hash; key add NAME makes one",
        ),
        (f"keys: {SECRET}\n", "config.yaml:1: keys: must be a section"),
        (f"keys:\n  'a b': {{hash: '{SUM}'}}\n", "config.yaml:2: keys.a b: a key's name is of A-Z"),
        (
            f"keys:\n  a: {{hash: '{SUM}', model: [bard]}}\n",
            "config.yaml:2: keys.a.model: unknown key; did you mean models?",
        ),
        (f"apiKeys: {SECRET}\n", "config.yaml:1: apiKeys: must be a list of keys"),
        (f"apiKeys: [{{a: {SECRET}}}]\n", "config.yaml:1: apiKeys[0]: must be text"),
        ("apiKeys: [' a']\n", "config.yaml:1: apiKeys[0]: must be a key, without spaces around it"),
        (
            f"keys: {{a: {{hash: '{SUM}'}}}}\napiKeys: [sk-one]\n",
            "config.yaml:1: keys: a and apiKeys[0] are the same key",
        ),
        ("allowed_hosts: ['http://a']\n", "config.yaml:1: allowed_hosts[0]: must be a host's name"),
        ("allowed_hosts: ['a:80']\n", "config.yaml:1: allowed_hosts[0]: must be a host's name"),
        (
            "cors: {allowed_origins: [a.example.org]}\n",
            "config.yaml:1: cors.allowed_origins[0]: must be an origin such as",
        ),
        (
            "cors: {allowed_origins: ['https://a.example.org/x']}\n",
            "config.yaml:1: cors.allowed_origins[0]: must be an origin such as",
        ),
        (
            "tls:\n  cert: a.pem\n",
            "config.yaml:1: tls.key: is missing: HTTPS needs a certificate and its key",
        ),
    ],
)
def test_errors_do_not_contain_the_secret(text: str, sentence: str) -> None:
    messages = faults(text + BARD)
    assert messages[0].startswith(sentence), messages
    assert SECRET[4:20] not in "".join(messages)


def test_the_representation_of_settings_contains_no_hash() -> None:
    settings = read(f"keys: {{a: {{hash: '{SUM}'}}}}\n{BARD}").settings
    assert settings.access.keys[0].digest.hex() not in repr(settings)
    assert repr(settings.access.keys[0].digest) not in repr(settings)
