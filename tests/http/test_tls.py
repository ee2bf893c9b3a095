"""HTTPS with certificate files that are renewed without a restart."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from swapd.http.tls import TlsError, new_context
from tests.daemon import Swapd, config, eventually
from tests.fixtures import fake
from tests.http.test_bad_input import serve


def certify(folder: Path, name: str, *more: str) -> None:
    """Create `name.crt` and `name.key`: a self-signed certificate for localhost."""
    folder.mkdir(exist_ok=True)
    made = ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"]
    if not more:
        made.append("-nodes")
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-days", "2"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", *kind, *names, *made, *more], cwd=folder, check=True, capture_output=True
    )


def common_name(swapd: Swapd) -> str:
    """Return the common name in the certificate that a new client receives."""
    pem = ssl.get_server_certificate(("127.0.0.1", swapd.port))
    (swapd.home / "seen.pem").write_text(pem)
    seen = ["openssl", "x509", "-noout", "-subject", "-in", str(swapd.home / "seen.pem")]
    done = subprocess.run(seen, capture_output=True, text=True, check=True)
    return done.stdout.strip().rpartition("=")[2].strip()


def test_https_with_a_certificate_that_is_renewed(home: Path) -> None:
    tls = home / "tls"
    certify(tls, "first")
    certify(tls, "second")
    for end in ("crt", "key"):
        shutil.copy(tls / f"first.{end}", tls / f"now.{end}")
    text = config({"a": fake("a")}, tls={"cert": "tls/now.crt", "key": "tls/now.key"})
    with Swapd(home, text) as swapd:
        swapd.url = swapd.url.replace("http:", "https:")
        swapd.http = httpx.Client(
            base_url=swapd.url,
            verify=ssl.create_default_context(cafile=str(tls / "first.crt")),
            trust_env=False,
        )
        assert swapd.ask("a").status_code == 200
        assert common_name(swapd) == "first"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{swapd.port}/health", trust_env=False)
        shutil.copy(tls / "second.crt", tls / "now.crt")
        eventually(lambda: "the previous certificate stays in use" in swapd.log())
        assert common_name(swapd) == "first"
        shutil.copy(tls / "second.key", tls / "now.key")
        eventually(lambda: common_name(swapd) == "second")
        # Existing connections continue.
        assert swapd.ask("a").status_code == 200
        assert "Traceback" not in swapd.log() + (home / "output").read_text()


def test_an_error_in_the_files_is_one_sentence(tmp_path: Path) -> None:
    certify(tmp_path, "one")
    certify(tmp_path, "other")
    certify(tmp_path, "locked", "-passout", "pass:word")
    (tmp_path / "text").write_text("no certificate")
    for cert, key, sentence in (
        ("none", "one.key", r"tls.cert: \S+/none can't be read: No such file"),
        ("one.crt", "none", r"tls.key: \S+/none can't be read: No such file"),
        ("text", "one.key", "must be a certificate and its key in PEM"),
        ("one.crt", "text", "must be a certificate and its key in PEM"),
        ("one.crt", "other.key", "does not belong to the certificate"),
        ("locked.crt", "locked.key", "has a password; swapd needs one without"),
    ):
        with pytest.raises(TlsError, match=sentence):
            new_context(str(tmp_path / cert), str(tmp_path / key))


def test_a_start_without_its_certificate_fails(home: Path) -> None:
    text = config({"a": fake("a")}, tls={"cert": "none.crt", "key": "none.key"})
    (home / "config.yaml").write_text(text)
    ended = serve(home, "--port", "1")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"swapd: tls.cert: {home}/none.crt can't be read: No such file")
