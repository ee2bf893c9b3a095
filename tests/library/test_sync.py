"""The whole of `sync`: real folders in, config.yaml out."""

# A sentence is easiest to check in one piece.
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from swapd.config.diff import diff
from swapd.config.errors import ConfigError
from swapd.config.load import LoadedConfig, load
from swapd.library.sync import SyncReport, sync
from tests.config.reading import RAM, WORKER
from tests.gguf.gguf_files import write_gguf


class Home:
    """A home with one model of each kind, in `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path / "home"
        self.path.mkdir()
        self.models = path / "my models"
        self.demo = path / "demo"
        write_gguf(self.models / "gemma/gemma-1b.gguf", context=32768)
        write_gguf(self.demo / "bard.gguf", context=1024)
        self.env = {"MODELS_DIR": str(self.models), "HOME": str(path)}

    def custom(self, text: str) -> None:
        (self.path / "custom_models.yaml").write_text(text)

    def sync(self, *, force: bool = False) -> SyncReport:
        return sync(self.path, self.env, self.demo, now=4e9, total_memory=RAM, force=force)

    def refusal(self) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.sync()
        return str(caught.value).splitlines()

    def load(self) -> LoadedConfig:
        return load(self.path / "config.yaml", self.env, worker_command=WORKER, total_memory=RAM)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_discovered_models_load(home: Home) -> None:
    report = home.sync()
    assert (report.added, report.changed, report.removed) == (("bard", "ls/gemma:1b"), (), ())
    assert (report.written, report.warnings, report.broken) == (True, (), ())
    loaded = home.load()
    assert loaded.warnings == ()
    bard, gemma = loaded.catalog.models.values()
    model = str(home.models / "gemma/gemma-1b.gguf")
    flags = ("--ctx-size", "8192", "--parallel", "1", "--slot-save-path", ".swapd/kv")
    added = ("--alias", gemma.name, "--host", "127.0.0.1", "--port", "0")
    assert gemma.launch.argv == (*WORKER, "--model", model, *flags, *added)
    assert (gemma.launch.builtin, gemma.launch.context, gemma.serving.slots, gemma.serving.ttl) == (
        True,
        8192,
        1,
        1800,
    )
    assert gemma.presentation.aliases == ("gemma:1b",)
    assert (bard.launch.context, bard.presentation.aliases) == (1024, ())
    assert 42 * 2**20 < bard.serving.need_bytes < gemma.serving.need_bytes < 70 * 2**20
    limits = loaded.catalog.limits
    assert (limits.threshold_percent, limits.interval) == (75, 30)
    assert limits.budget_bytes == RAM * 80 // 100


def test_a_second_sync_writes_nothing(home: Home) -> None:
    home.sync()
    before = home.config.stat()
    report = home.sync()
    after = home.config.stat()
    assert (report.written, report.added, report.changed, report.settings) == (False, (), (), ())
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert sorted(p.name for p in home.path.iterdir()) == [".swapd", "config.yaml"]


def test_changes_are_reported(home: Home) -> None:
    home.sync()
    (home.demo / "bard.gguf").unlink()
    write_gguf(home.models / "new/new.gguf")
    home.custom("max_resident: 2\nmodels: {'gemma:1b': {ctx_size: 2048}}")
    report = home.sync()
    assert (report.added, report.changed) == (("ls/new",), ("ls/gemma:1b",))
    assert (report.removed, report.settings) == (("bard",), ("max_resident",))
    assert home.load().catalog.models["ls/gemma:1b"].launch.context == 2048


def test_a_file_in_the_place_of_another_changes_its_model(home: Home) -> None:
    template = home.path / "chat.jinja"
    template.write_text("{{ one }}")
    home.custom("models: {bard: {chat_template_file: chat.jinja}}")
    home.sync()
    old = home.load().catalog
    other = write_gguf(home.models / "../other.gguf", context=32768)
    other.replace(home.models / "gemma/gemma-1b.gguf")
    report = home.sync()
    assert (report.written, report.changed) == (True, ("ls/gemma:1b",))
    template.write_text("{{ two }}")
    assert home.sync().changed == ("bard",)
    assert diff(old, home.load().catalog).restarted == ("bard", "ls/gemma:1b")
    now = home.load().catalog
    template.unlink()
    home.sync()
    assert diff(now, home.load().catalog).restarted == ()


@pytest.mark.parametrize(
    "cmd", ["llama-server -m ${MODEL_PATH} --port ${PORT}", ["x", "${PORT}", "${MODEL_PATH}"]]
)
def test_only_a_server_without_its_file_is_left_out(home: Home, cmd: str | list[str]) -> None:
    home.custom(msgspec.json.encode({"models": {"gemma:1b": {"cmd": cmd}}}).decode())
    home.sync()
    (home.models / "gemma/gemma-1b.gguf").unlink()
    report = home.sync()
    assert report.removed == ("ls/gemma:1b",)
    assert [str(w) for w in report.warnings] == [
        "custom_models.yaml:1: models.gemma:1b: no model of this name was found for the ${MODEL_PATH} in its cmd"
    ]


def test_a_comment_that_speaks_of_the_file_asks_for_none(home: Home) -> None:
    home.custom("models:\n  own:\n    cmd: |\n      # not ${MODEL_PATH}\n      x ${PORT}\n")
    assert home.sync().warnings == ()
    assert "ls/own" in home.load().catalog.models


def test_the_environment_and_dotenv_set_the_terms(home: Home) -> None:
    (home.path / ".env").write_text("MODEL_TTL=60\nMODEL_PREFIX=\nDEFAULT_PARALLEL=4 # slots\n")
    home.env["MEMORY_PRESSURE_THRESHOLD"] = "85"
    home.sync()
    catalog = home.load().catalog
    assert list(catalog.models) == ["bard", "gemma:1b"]
    spec = catalog.models["gemma:1b"]
    assert (spec.serving.ttl, spec.serving.slots, spec.presentation.aliases) == (60, 4, ())
    assert catalog.limits.threshold_percent == 85


CUSTOM = """
ttl: 7
max_resident: 2
memory: {budget: 1 GiB}
macros: {version: 1.10}
models:
  bard:
    sampler_args: --temp 0.9 --top-nsigma 1.5
    ctx_size: 512
    ttl: 0
    aliases: [poet]
    metadata: {version: "${version}", n: [1, two]}
  gemma:1b:
    cmd: |
      # it's llama-server
      llama-server --port ${PORT}
      -m ${MODEL_PATH} --alias "${MODEL_PATH}"
  whisper:
    cmd: [whisper, "${PORT}", a b]
    checkEndpoint: none
    env: [A=b c]
    concurrencyLimit: 2
    unlisted: true
  bart: {ttl: 3}
"""


def test_custom_models_win(home: Home) -> None:
    home.custom(CUSTOM)
    report = home.sync()
    assert [str(w) for w in report.warnings] == [
        "custom_models.yaml:24: models.bart: no model of this name was found, and it has no cmd; did you mean bard?"
    ]
    loaded = home.load()
    assert (loaded.catalog.limits.max_resident, loaded.catalog.limits.budget_bytes) == (2, 2**30)
    models = loaded.catalog.models
    assert list(models) == ["bard", "ls/gemma:1b", "ls/whisper"]
    bard, gemma, whisper = models.values()
    assert bard.launch.argv[-10:-6] == ("--temp", "0.9", "--top-nsigma", "1.5")
    assert (bard.launch.context, bard.serving.ttl, bard.presentation.aliases) == (512, 0, ("poet",))
    assert bard.presentation.metadata == {"version": 1.1, "n": [1, "two"]}
    path = str(home.models / "gemma/gemma-1b.gguf")
    assert gemma.launch.argv == ("llama-server", "--port", "${PORT}", "-m", path, "--alias", path)
    assert (gemma.launch.builtin, gemma.serving.ttl, gemma.serving.need_bytes > 96 * 2**20) == (
        False,
        7,
        True,
    )
    assert whisper.launch.argv == ("whisper", "${PORT}", "a b")
    assert (whisper.launch.check_endpoint, whisper.launch.env) == ("", (("A", "b c"),))
    assert (whisper.serving.slots, whisper.presentation.unlisted, whisper.presentation.aliases) == (
        2,
        True,
        ("whisper",),
    )


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            "memory: {budgt: 3}\nmodels:\n  bard: {ttll: 3}",
            [
                "custom_models.yaml:1: memory.budgt: unknown key; did you mean budget?",
                "custom_models.yaml:3: models.bard.ttll: unknown key; did you mean ttl?",
            ],
        ),
        (
            "models:\n  bard:\n    sampler_arg: a",
            [
                "custom_models.yaml:3: models.bard.sampler_arg: unknown key; did you mean sampler_args?"
            ],
        ),
        (
            "models:\n  bard:\n    sampler_args: \"it's\"",
            [
                "custom_models.yaml:3: models.bard.sampler_args: cannot be split: a quote is never closed"
            ],
        ),
        (
            "models:\n  gemma:1b:\n    aliases: [bard]\n  far:\n    cmd: far\n",
            [
                "custom_models.yaml:3: models.gemma:1b.aliases[0]: bard is the name of a model",
                "custom_models.yaml:5: models.far.cmd: does not use ${PORT}, so proxy must say where the worker answers",
            ],
        ),
        (
            "memory:\n  budget: all",
            [
                "custom_models.yaml:2: memory.budget: must be a size like 8 GiB, 8 GB, 512 MiB or 80%, or a number of bytes, not all"
            ],
        ),
        ("models: [a]", ["custom_models.yaml:1: models: must be a section with a model's name as each key"]),
        ("models: {a: b}", ["custom_models.yaml:1: models.a: must be a section of settings"]),
        ("models:\n\tbard:", ["custom_models.yaml:2: a tab is used where YAML requires spaces"]),
    ],
)  # fmt: skip
def test_a_problem_is_reported_at_its_line_and_changes_nothing(
    home: Home, text: str, sentences: list[str]
) -> None:
    home.sync()
    before = home.config.read_bytes()
    home.custom(text)
    assert home.refusal() == sentences
    assert home.config.read_bytes() == before


def test_an_alias_assigned_by_the_author_stays(home: Home) -> None:
    home.custom("models: {bard: {aliases: ['gemma:1b']}}")
    home.sync()
    bard, gemma = home.load().catalog.models.values()
    assert (bard.presentation.aliases, gemma.presentation.aliases) == (("gemma:1b",), ())


def test_aliases_in_sections_as_llama_swap_has_them(home: Home) -> None:
    home.custom("models: {bard: {aliases: [{id: gpt-4o-mini}, poet]}}")
    assert home.sync().warnings == ()
    assert home.load().catalog.models["bard"].presentation.aliases == ("gpt-4o-mini", "poet")


def test_a_config_not_written_by_sync_is_left_alone(home: Home) -> None:
    home.config.write_text("models: {}\n")
    assert home.refusal() == [
        "config.yaml: was not written by sync; move it away, or use --force to overwrite it"
    ]
    assert home.config.read_text() == "models: {}\n"
    assert home.sync(force=True).written
    assert "bard" in home.load().catalog.models


def test_a_damaged_generated_config_is_rewritten(home: Home) -> None:
    home.sync()
    home.config.write_text(home.config.read_text() + "\n\tbroken")
    assert home.sync().written
    assert home.load().warnings == ()


def test_a_link_stays_a_link_and_the_mode_stays(home: Home, tmp_path: Path) -> None:
    elsewhere = tmp_path / "real.yaml"
    home.config.symlink_to(elsewhere)
    home.sync()
    assert elsewhere.stat().st_mode & 0o777 == 0o600
    elsewhere.chmod(0o640)
    home.custom("max_resident: 1")
    home.sync()
    assert home.config.is_symlink()
    assert elsewhere.stat().st_mode & 0o777 == 0o640
    assert "max_resident: 1" in elsewhere.read_text()


def test_an_author_s_ttl_in_llama_swap_s_spelling_wins(home: Home) -> None:
    home.custom("globalTTL: 5")
    home.sync()
    assert home.load().catalog.models["bard"].serving.ttl == 5


def test_a_model_over_the_budget_is_listed_with_a_warning(home: Home) -> None:
    home.custom("memory: {budget: 60 MiB}\nmodels: {'gemma:1b': {ctx_size: 30000}}")
    [warning, *_] = home.sync().warnings
    assert str(warning).startswith("config.yaml: models.ls/gemma:1b: needs about 79.7 MiB")
    assert home.load().catalog.models["ls/gemma:1b"].serving.need_bytes == 60 * 2**20


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "models:\n  bard:\n    ctx_size: 4096",
            "custom_models.yaml:3: models.bard.ctx_size: 4096 is more than the 1024 tokens that the model was trained for",
        ),
        (
            "models:\n  bard:\n    cmd: a ${PORT}\n    ctx_size: 4",
            "custom_models.yaml:4: models.bard.ctx_size: has no effect beside cmd; write it there",
        ),
        (
            "peers: {a: {}}",
            "custom_models.yaml:1: peers: has no effect yet: their models are not served",
        ),
    ],
)
def test_warnings_are_reported_once(home: Home, text: str, sentence: str) -> None:
    home.custom(text)
    assert [str(warning) for warning in home.sync().warnings] == [sentence]


def test_a_missing_models_dir_is_reported(home: Home, tmp_path: Path) -> None:
    home.env["MODELS_DIR"] = str(tmp_path / "none")
    [warning] = home.sync().warnings
    assert str(warning) == f"environment: MODELS_DIR: {tmp_path}/none is not a folder"


@pytest.mark.parametrize(
    "stem", ["a b", "it's", 'say "hi"', "back\\slash", "#hash", "ünï", "$x", "- a: b"]
)
def test_any_file_name_is_supported(home: Home, stem: str) -> None:
    path = write_gguf(home.models / "odd" / f"{stem}.gguf")
    home.custom('models: {bard: {cmd: "x ${PORT} ${MODEL_PATH}"}}')
    assert home.sync().broken == ()
    found = [s for s in home.load().catalog.models.values() if str(path) in s.launch.argv]
    assert len(found) == 1
