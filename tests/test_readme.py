"""Commands in the README have the described effect, and its links lead to files."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.daemon import ROOT, Swapd, config

README = (ROOT / "README.md").read_text()
ENDPOINT = "http://127.0.0.1:5847"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _curls() -> list[str]:
    text = "".join(b for b in _blocks("sh") if b.startswith("curl"))
    return [f"curl{part}" for part in re.split(r"^curl", text, flags=re.MULTILINE)[1:]]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapd]:
    """Yield a swapd with the demo models, configured as by a sync."""
    models = {
        name: {"cmd": f"${{worker}} --model {ROOT}/demo/{name}.gguf --threads 1"}
        for name in ("bard", "alice")
    }
    with Swapd(tmp_path_factory.mktemp("readme"), config(models)) as swapd:
        yield swapd


def _run(curl: str, swapd: Swapd) -> str:
    argv = shlex.split(curl.replace(ENDPOINT, swapd.url))
    done = subprocess.run([*argv, "-sS", "-f"], capture_output=True, text=True, check=True)
    return done.stdout


def test_there_are_four_curl_lines_and_they_work(demos: Swapd) -> None:
    whole, stream, models, running = (_run(curl, demos) for curl in _curls())
    answer = msgspec.json.decode(whole)
    assert answer["model"] == "bard"
    assert answer["choices"][0]["message"]["content"]
    assert stream.rstrip().endswith("data: [DONE]")
    assert {m["id"] for m in msgspec.json.decode(models)["data"]} == {"bard", "alice"}
    assert {w["model"] for w in msgspec.json.decode(running)["running"]} == {"bard", "alice"}


def test_the_python_lines_work(demos: Swapd) -> None:
    (code,) = _blocks("python")
    names: dict[str, object] = {}
    exec(code.replace(ENDPOINT, demos.url), names)
    client = names["client"]
    assert client.models.retrieve("alice").to_dict()["state"] == "ready"  # type: ignore[attr-defined]
    client.close()  # type: ignore[attr-defined]


def test_the_first_block_has_two_commands() -> None:
    commands = [line.split("#")[0].strip() for line in _blocks("sh")[0].splitlines()]
    assert commands == ["./model start", "./model test"]


def test_every_named_command_exists() -> None:
    done = subprocess.run(
        ["./model", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = re.findall(r"^\| (`\./model .*?) \|", README, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`(?:\./model )?([a-z]+)", row)}
    assert {"start", "run", "list", "pull", "service", "doctor"} <= named
    for name in named:
        assert re.search(rf"^ +{name}\b", done.stdout, re.MULTILINE), name


def test_it_is_short_and_its_links_exist() -> None:
    assert len(README.splitlines()) <= 70
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "demo/README.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_http_page_names_every_route_and_every_rejection() -> None:
    from swapd.domain.commands import HTTP_STATUS
    from swapd.http import app, proxy_routes

    page = (ROOT / "docs/http.md").read_text()
    source = Path(app.__file__).read_text()
    for path in [*proxy_routes.BY_BODY, *re.findall(r'web\.\w+\("(/[\w/]+)', source)]:
        assert path in page, path
    for _, _, code in HTTP_STATUS.values():
        assert f"`{code}`" in page, code
