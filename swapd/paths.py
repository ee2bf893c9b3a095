"""Paths of one instance: the folder of its configuration and state, and files of the package."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

WORKER_COMMAND = (sys.executable, "-I", "-m", "workers.serve")
"""Value of `${worker}` in commands: the built-in worker, run by the Python that runs swapd.

Isolated mode (`-I`) keeps files in the working directory from being imported."""
STANDBY_COMMAND = (sys.executable, "-I", "-m", "workers.spare")
"""Command of a warm standby, which later receives the arguments of a worker command."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths of an instance's files below its data directory `folder`."""

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
    def profiles(self) -> Path:
        return self.state / "learned.json"

    @property
    def edits(self) -> Path:
        """Lock file of commands that change the configuration."""
        return self.state / "edits.lock"

    @property
    def logs(self) -> Path:
        return self.state / "logs"


def find_paths(environ: Mapping[str, str] = os.environ) -> Paths:
    """Return the paths below `SWAPD_HOME`, by default the user's configuration folder for swapd."""
    configured = environ.get("SWAPD_HOME")
    if configured:
        folder = Path(configured)
    else:
        import platformdirs  # Slow to import, and most often not needed.

        folder = platformdirs.user_config_path("swapd")
    return Paths(folder.expanduser().absolute())


def demo_directory() -> Path:
    """Return the folder of the demo models: inside the installed package, else in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "demo"
    return installed if installed.is_dir() else package.parent / "demo"


def schema_url(name: str) -> str:
    """Return the URL of a configuration file's schema for editors; empty if it is not shipped."""
    file = template_directory() / "docs" / f"{name}.schema.json"
    return file.as_uri() if file.is_file() else ""


def template_directory() -> Path:
    """Return the parent of `launchd/` and `systemd/`: the installed package, or the checkout."""
    package = Path(__file__).resolve().parent
    return package if (package / "systemd").is_dir() else package.parent
