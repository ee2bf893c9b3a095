"""Which adapters there are by name, and which of them a request means. The event loop's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from workers.engine.lora import AdapterFiles
from workers.errors import ApiError
from workers.settings import Settings

SUFFIX = ".gguf"


@dataclass(eq=False)
class NamedAdapter:
    """An adapter that may be asked for."""

    name: str
    path: Path
    scale: float = 0.0
    """What requests get that say nothing of adapters; 0: not this one."""


class AdapterNames:
    """The adapters of the flags, of the folder, and those that were named since."""

    def __init__(self, settings: Settings) -> None:
        self._own_name = settings.name
        self._folder = None if settings.adapters is None else Path(settings.adapters)
        self._named: list[NamedAdapter] = []
        for path, scale in settings.loras:
            self._named.append(NamedAdapter(self._free_name(Path(path).stem), Path(path), scale))
        for name, path in settings.adapter_paths:
            self._named.append(NamedAdapter(name, Path(path)))

    def all(self) -> list[NamedAdapter]:
        """Each one; its place is llama-server's `id`."""
        if self._folder is not None:
            for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                self._from_folder(path.name.removesuffix(SUFFIX))
        return self._named

    def find(self, name: str) -> NamedAdapter | None:
        """The adapter called `name`; what has come into the folder since is found."""
        for named in self._named:
            if named.name == name:
                return named
        return self._from_folder(name)

    def wanted(self, model: str | None, lora: list[tuple[int, float]] | None) -> AdapterFiles:
        """What a request means: `lora` if it has it, else the adapter that `model` names.

        Raises ApiError 404 for an adapter there is none of.
        """
        if lora is not None:
            chosen = self.all()
            for number, _ in lora:
                if not 0 <= number < len(chosen):
                    raise ApiError(404, f"There is no adapter {number}.", param="lora")
            return tuple((chosen[number].path, scale) for number, scale in lora if scale)
        named = self._meant(model)
        if named is not None:
            return ((named.path, named.scale or 1.0),)
        return tuple((one.path, one.scale) for one in self._named if one.scale)

    def add(self, name: str, file: str) -> NamedAdapter:
        """Names one more, in the folder of adapters or where another one is; the same name for
        another file is refused. Raises ApiError 400 and 403."""
        path = Path(os.path.normpath(file if self._folder is None else self._folder / file))
        known = self.find(name)
        inside = self._folder is not None and path.is_relative_to(os.path.normpath(self._folder))
        if not inside and all(path != Path(os.path.normpath(one.path)) for one in self._named):
            raise ApiError(
                403, "Only a file in the folder of --adapters can be loaded.", param="lora_path"
            )
        if known is None:
            known = NamedAdapter(name, path)
            self._named.append(known)
        elif known.path != path:
            raise ApiError(400, f"Another adapter is called {name!r}.", param="lora_name")
        return known

    def remove(self, named: NamedAdapter) -> None:
        """Forgets a name."""
        self._named.remove(named)

    def _meant(self, model: str | None) -> NamedAdapter | None:
        """The adapter that a request's `model` names: all of it, or what follows its last colon."""
        if model is None or model == self._own_name:
            return None
        base, colon, tail = model.rpartition(":")
        named = self.find(model) or (self.find(tail) if colon else None)
        if named is None and colon and base == self._own_name:
            known = ", ".join(one.name for one in self.all()) or "none"
            raise ApiError(
                404,
                f"{base} has no adapter {tail!r}; there are: {known}.",
                param="model",
                code="model_not_found",
            )
        return named

    def _from_folder(self, name: str) -> NamedAdapter | None:
        if self._folder is None or "/" in name or any(one.name == name for one in self._named):
            return None
        path = self._folder / f"{name}{SUFFIX}"
        try:
            if not name or not path.is_file():
                return None
        except OSError:
            return None  # no file can have such a name
        self._named.append(NamedAdapter(name, path))
        return self._named[-1]

    def _free_name(self, name: str) -> str:
        taken = {one.name for one in self._named}
        numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
        return next(free for free in (name, *numbered) if free not in taken)
