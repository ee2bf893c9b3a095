"""`./model key`: keys are created, listed, used and removed; commands need none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec

from tests.cli.user import User


def test_keys_are_created_used_and_removed(user: User) -> None:
    added = user.types("key", "add", "laptop", "--models", "bard", "--rate", "100", "--priority=-2")
    assert added.returncode == 0, added.stderr
    key = added.stdout.strip()
    assert key.startswith("sk-swapd-")
    assert "every HTTP request but GET /health needs one" in added.stderr
    assert "there is a key laptop already" in user.fails("key", "add", "laptop")
    assert "can't be a key's name" in user.fails("key", "add", "my laptop", status=2)
    assert "names no model" in user.fails("key", "add", "none", "--models", "", status=2)
    assert "names no model" in user.fails("key", "add", "none", "--models", " , ", status=2)
    both = ("key", "add", "none", "--models", "bard", "--admin")
    assert "--admin allows every model" in user.fails(*both, status=2)
    assert key not in user.custom.read_text() + user.config.read_text()
    listed = msgspec.json.decode(user.says("key", "list", "--json"))["keys"]
    terms = {"models": ["bard"], "admin": False, "rate": 100, "priority": -2}
    assert listed == [{"name": "laptop", **terms}]
    assert user.says("key", "list").splitlines()[1].split() == ["laptop", "bard", "100", "-2"]

    user.says("start")
    models = f"http://127.0.0.1:{user.port}/v1/models"
    shown = {"Authorization": f"Bearer {key}"}
    assert httpx.get(models, trust_env=False).status_code == 401
    output = httpx.get(models, headers=shown, trust_env=False).json()
    assert [m["id"] for m in output["data"]] == ["bard"]
    # The commands need no key: they come by the socket.
    assert "2 models" in user.says("status")
    assert "bard" in user.says("load", "bard")
    assert "bard" in user.says("ps")
    assert user.says("run", "bard", "Who goes there?", "--max-tokens", "3")
    user.says("key", "rm", "laptop")
    assert httpx.get(models, trust_env=False).status_code == 200, "as soon as the command ends"
    user.says("key", "add", "another")
    assert httpx.get(models, headers=shown, trust_env=False).status_code == 401
    user.says("key", "rm", "another")
    assert "says nothing of a key laptop" in user.fails("key", "rm", "laptop")
    assert "there are no keys" in user.says("key", "list")


def test_a_handwritten_configuration_is_edited_in_place(user: User) -> None:
    user.config.parent.mkdir(parents=True)
    user.config.write_text("# mine\napiKeys: [plain-5ecret]  # old\nmodels: {}\n")
    user.says("key", "add", "ops", "--admin")
    text = user.config.read_text()
    assert text.startswith(
        "# mine\napiKeys: [plain-5ecret]  # old\nmodels: {}\nkeys:\n  ops: {hash:"
    )
    assert not user.custom.exists()
    rows = [line.split() for line in user.says("key", "list").splitlines()[1:]]
    assert rows == [["ops", "all", "yes"], ["apiKeys[0]", "all", "yes"]]
    typo = user.types("key", "add", "typo", "--models", "bart, bard*")
    assert typo.returncode == 0, typo.stderr
    assert "there is no model bart now" in typo.stderr
    assert "there is no model bard* now" in typo.stderr
    text = user.config.read_text()
    shown = user.says("config", "show")
    assert "5ecret" not in shown
    assert shown == text.replace("plain-5ecret", "'***'")
    user.config.write_text("apiKeys: [plain-5ecret\n")
    assert "5ecret" not in user.fails("config", "show")


def test_the_configuration_of_the_swapd_that_runs_gets_the_key(user: User) -> None:
    other = user.home / "other.yaml"
    other.write_text(f"port: {user.port}\nmodels: {{}}\n")
    user.says("start", "--config", str(other))
    added = user.types("key", "add", "laptop")
    assert added.returncode == 0, added.stderr
    assert f"{other} has its SHA-256 sum" in added.stderr
    assert not user.custom.exists()
    assert "laptop" in user.says("key", "list")
    models = f"http://127.0.0.1:{user.port}/v1/models"
    assert httpx.get(models, trust_env=False).status_code == 401
    user.says("key", "rm", "laptop")
    assert "laptop" not in other.read_text()


def test_edits_at_once_are_all_kept(user: User) -> None:
    user.says("sync")
    words = [("key", "add", f"parallel{i}") for i in range(4)]
    words += [("set", "bard", f"metadata.mark{i}=x") for i in range(3)]
    with ThreadPoolExecutor(len(words)) as several:
        list(several.map(lambda one: user.says(*one), words))
    listed = msgspec.json.decode(user.says("key", "list", "--json"))["keys"]
    assert {key["name"] for key in listed} == {f"parallel{i}" for i in range(4)}
    assert all(f"mark{i}: x" in user.custom.read_text() for i in range(3))
