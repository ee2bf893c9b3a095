"""Adapters by name. Used by the event loop's thread alone."""

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
    """An adapter that requests may name."""

    name: str
    path: Path
    scale: float = 0.0
    """Scale for requests that name no adapter; 0 leaves it out."""


class AdapterNames:
    """The adapters of the flags and of the folder, and those added since."""

    def __init__(self, settings: Settings) -> None:
        self._own_name = settings.name
        self._folder = None if settings.adapters is None else Path(settings.adapters)
        self._named: list[NamedAdapter] = []
        for path, scale in settings.loras:
            self._named.append(NamedAdapter(self._free_name(Path(path).stem), Path(path), scale))
        for name, path in settings.adapter_paths:
            self._named.append(NamedAdapter(name, Path(path)))

    def all(self) -> list[NamedAdapter]:
        """Return all adapters, each at the place of llama-server's `id`."""
        if self._folder is not None:
            for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                self._from_folder(path.name.removesuffix(SUFFIX))
        return self._named

    def find(self, name: str) -> NamedAdapter | None:
        """Return the adapter called `name`, or None. New files in the folder are found."""
        for named in self._named:
            if named.name == name:
                return named
        return self._from_folder(name)

    def wanted(self, model: str | None, lora: list[tuple[int, float]] | None) -> AdapterFiles:
        """Return the adapters of a request: those of `lora`, else the one that `model` names.

        Raises ApiError 404 for an unknown adapter.
        """
        if lora is not None:
            chosen = self.all()
            for number, _ in lora:
                if not 0 <= number < len(chosen):
                    raise ApiError(404, f"There is no adapter {number}.", param="lora")
            return tuple((chosen[number].path, scale) for number, scale in lora if scale)
        named = self._named_by(model)
        if named is not None:
            return ((named.path, named.scale or 1.0),)
        return tuple((one.path, one.scale) for one in self._named if one.scale)

    def add(self, name: str, file: str) -> NamedAdapter:
        """Add an adapter, in the folder of adapters or at the path of another one.

        Raises ApiError 403 for any other path, and 400 for a name that another file has.
        """
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
        """Remove an adapter."""
        self._named.remove(named)

    def _named_by(self, model: str | None) -> NamedAdapter | None:
        """Return the adapter that `model` names, whole or by its part after the last colon."""
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
            return None  # the name is no possible file name
        self._named.append(NamedAdapter(name, path))
        return self._named[-1]

    def _free_name(self, name: str) -> str:
        taken = {one.name for one in self._named}
        numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
        return next(free for free in (name, *numbered) if free not in taken)
