"""The home of one swapd: the folder that holds its configuration and its state."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WORKER_COMMAND = (sys.executable, "-I", "-m", "workers.serve")
"""What `${worker}` in a command means: our own worker, in the Python that runs swapd. Isolated
(`-I`): a file that happens to lie in the working directory is never imported."""
SPARE_COMMAND = (sys.executable, "-I", "-m", "workers.spare")
"""A worker that waits to be told the rest of such a command."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths below one folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def custom(self) -> Path:
        return self.folder / "custom_models.yaml"

    @property
    def state(self) -> Path:
        return self.folder / ".swapd"

    @property
    def socket(self) -> Path:
        return self.state / "swapd.sock"

    @property
    def http_socket(self) -> Path:
        return self.state / "http.sock"

    @property
    def learned(self) -> Path:
        return self.state / "learned.json"

    @property
    def edits(self) -> Path:
        """Locked by a command while it changes a configuration."""
        return self.state / "edits.lock"

    @property
    def logs(self) -> Path:
        return self.state / "logs"


def find_paths(environ: Mapping[str, str] = os.environ) -> Paths:
    """The folder that `SWAPD_HOME` names, else the user's configuration folder for swapd."""
    named = environ.get("SWAPD_HOME")
    if named:
        folder = Path(named)
    else:
        import platformdirs  # Slow to import, and most often not needed.

        folder = platformdirs.user_config_path("swapd")
    return Paths(folder.expanduser().absolute())


def demo_directory() -> Path:
    """Where the demo models lie: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "demo"
    return installed if installed.is_dir() else package.parent / "demo"


def schema_url(name: str) -> str:
    """Where editors find the schema of a configuration file; empty where it is not shipped."""
    file = template_directory() / "docs" / f"{name}.schema.json"
    return file.as_uri() if file.is_file() else ""


def template_directory() -> Path:
    """Where `launchd/` and `systemd/` lie: inside the installed package, else beside it."""
    package = Path(__file__).resolve().parent
    return package if (package / "systemd").is_dir() else package.parent
