"""A machine with models in every store, made of the demo models."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from swapd.config.load import LoadedConfig, load
from swapd.library.sync import SyncReport, sync
from tests.config.reading import RAM, WORKER
from tests.gguf.gguf_files import write_gguf

DEMO = Path(__file__).parents[2] / "demo"
BARD, ALICE, LORA = (DEMO / f"{name}.gguf" for name in ("bard", "alice", "alice-lora"))
LAYER = "application/vnd.ollama.image."


class Ollama:
    """A store as Ollama lays it out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs").mkdir(parents=True)
        (root / "manifests").mkdir()

    def blob(self, data: bytes) -> str:
        """Store bytes; their digest."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.root / "blobs" / f"sha256-{digest}"
        if not path.exists():
            path.write_bytes(data)
        return f"sha256:{digest}"

    def path(self, data: bytes) -> Path:
        return self.root / "blobs" / self.blob(data).replace(":", "-")

    def add(
        self,
        name: str,
        model: bytes,
        size: str = "3.1M",
        quant: str = "Q8_0",
        **layers: bytes,
    ) -> Path:
        """Add HOST/NAMESPACE/MODEL/TAG with a model and other layers; its manifest."""
        config = json.dumps({"model_format": "gguf", "model_type": size, "file_type": quant})
        kinds = {"model": model, "license": b"MIT", **layers}
        manifest = {
            "schemaVersion": 2,
            "config": {"digest": self.blob(config.encode())},
            "layers": [
                {"mediaType": LAYER + kind, "digest": self.blob(data), "size": len(data)}
                for kind, data in kinds.items()
            ],
        }
        path = self.root / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest))
        return path


class Hub:
    """A cache as huggingface_hub lays it out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True)

    def add(self, repository: str, commit: str, file: str, data: bytes, main: bool = True) -> Path:
        """Add a file of OWNER/REPO at a commit; its place in the snapshot."""
        top = self.root / ("models--" + repository.replace("/", "--"))
        blob = top / "blobs" / hashlib.sha256(data).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        path = top / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(blob, path.parent))
        if main:
            (top / "refs").mkdir(exist_ok=True)
            (top / "refs/main").write_text(commit)
        return path


def tiny(folder: Path, tokens: int) -> bytes:
    """The smallest model that passes for one: thousands of times quicker to write and to hash."""
    return write_gguf(folder / f"tiny-{tokens}.gguf", tokens=tokens, rows=1).read_bytes()


def another(data: bytes, number: int) -> bytes:
    """The same model as another file."""
    return data + bytes([number])


class Machine:
    """A home, and stores to put models into."""

    def __init__(self, root: Path, bard: bytes = b"", alice: bytes = b"") -> None:
        self.root = root
        self.bard = bard or tiny(root / "made", 3)
        self.alice = alice or tiny(root / "made", 4)
        self.parts: tuple[bytes, ...] = ()
        """A model in two files; without them, two that only look like it."""
        self.home = root / "home"
        self.home.mkdir()
        self.demo = root / "demo"
        self.demo.mkdir()
        self.models = root / "models"
        self.models.mkdir()
        self.ollama = Ollama(root / "ollama")
        self.hub = Hub(root / "hub")
        self.folder = root / "my folder"
        self.folder.mkdir()
        self.env = {
            "HOME": str(root),
            "MODELS_DIR": str(self.models),
            "OLLAMA_MODELS": str(self.ollama.root),
            "HF_HUB_CACHE": str(self.hub.root),
            "MODEL_FOLDERS": str(self.folder),
        }

    def sync(self) -> SyncReport:
        return sync(self.home, self.env, self.demo, now=4e9, total_memory=RAM)

    def load(self) -> LoadedConfig:
        return load(self.home / "config.yaml", self.env, worker_command=WORKER, total_memory=RAM)

    def served(self) -> dict[str, str]:
        """Each model that a daemon would serve, with its file below the machine's root."""
        models = self.load().catalog.models.values()
        return {
            m.name: os.path.relpath(m.launch.argv[m.launch.argv.index("--model") + 1], self.root)
            for m in models
        }

    def put(self, place: str, data: bytes) -> Path:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def foreign(self) -> dict[str, object]:
        """Every file and link outside the home, as it is: to see that nothing touches it."""
        state: dict[str, object] = {}
        for path in sorted(self.root.rglob("*")):
            if self.home in (path, *path.parents):
                continue
            if path.is_symlink():
                state[str(path)] = str(path.readlink())
            elif path.is_file():
                found = path.stat()
                state[str(path)] = (found.st_size, found.st_mtime_ns, found.st_ino, found.st_mode)
            else:
                state[str(path)] = "folder"
        return state


def fill(machine: Machine) -> None:
    """A machine with an example of everything that stores hold."""
    bard, alice = machine.bard, machine.alice
    machine.put("demo/bard.gguf", bard)
    ollama, library = machine.ollama, "registry.ollama.ai/library"
    ollama.add(f"{library}/gemma3/27b", another(bard, 1), "27.4B", template=b"{{ .Prompt }}")
    ollama.add(f"{library}/gemma3/latest", another(bard, 1), "27.4B")
    ollama.add(f"{library}/gemma3/27b-q4", another(bard, 2), "27.4B", "Q4_K_M")
    ollama.add("registry.ollama.ai/mary/gemma3/27b", another(bard, 3), "27.4B")
    ollama.add("hf.co/mary/gemma3/Q8_0", another(bard, 4), "27.4B", "unknown")
    projector = write_gguf(machine.root / "made/p.gguf", arch="clip", tokenizer=False)
    ollama.add(f"{library}/llava/7b", another(bard, 5), projector=projector.read_bytes())
    lora = LORA.read_bytes()
    ollama.add(f"{library}/poet/latest", another(bard, 1), "27.4B", adapter=lora)
    machine.put("models/mary/tiny/tiny-q8_0.gguf", alice)
    machine.put("models/john/tiny/tiny-q8_0.gguf", another(alice, 1))
    machine.put("models/john/tiny/tiny-q4_k_m.gguf", another(alice, 2))
    split = (
        write_gguf(machine.root / "made/1.gguf"),
        write_gguf(machine.root / "made/2.gguf", rows=2),
    )
    for i, part in enumerate(machine.parts or [path.read_bytes() for path in split], 1):
        machine.put(f"models/john/big/big-0000{i}-of-00002.gguf", part)
        machine.hub.add("o/Cut-GGUF", "c0", f"q/cut-q4_0-0000{i}-of-00002.gguf", part)
    machine.put("models/john/eye/eye-7b.gguf", another(alice, 3))
    machine.put("models/john/eye/mmproj-eye-f32.gguf", projector.read_bytes())
    machine.hub.add("o/Tiny-GGUF", "c1", "tiny-Q8_0.gguf", another(alice, 4), main=False)
    machine.hub.add("o/Tiny-GGUF", "c2", "tiny-Q8_0.gguf", another(alice, 5))
    machine.hub.add("o/Tiny-GGUF", "c1", "tiny-Q4_0.gguf", another(alice, 6), main=False)
    machine.put("my folder/Größe und Maß.gguf", another(alice, 7))
    machine.put("my folder/sub/copy.gguf", b"").unlink()
    os.link(machine.models / "mary/tiny/tiny-q8_0.gguf", machine.folder / "sub/copy.gguf")
    machine.put("my folder/short.gguf", alice[:-1])
    (machine.models / "john/gone.gguf").symlink_to("/not/mounted/gone.gguf")
