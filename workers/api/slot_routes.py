"""Endpoints for saved slots (llama-server's) and for adapters (llama-server's and vLLM's)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from aiohttp import web

from workers.api.json_response import json_response
from workers.engine.batch_scheduler import BatchScheduler
from workers.engine.kv_store import MANIFEST, DamagedError, PersistentKvCache, SavedSequence
from workers.engine.prefix_cache import HeldCells
from workers.errors import ApiError
from workers.llama.model import LoadError
from workers.requests.bodies import LoraScale, decode
from workers.requests.sampling import parse_natural
from workers.service import WorkerService

SAFE_NAME = re.compile(r"[^\x00-\x1f/\\.][^\x00-\x1f/\\]{0,199}")
"""File names without a path, a leading dot or control characters."""


class FileName(msgspec.Struct):
    """The body of save and restore."""

    filename: str


class SlotRoutes:
    """Handlers of POST /slots/{id}?action=save|restore|erase.

    A slot's cached sequence is saved to a file, whose name the client chooses.
    """

    def __init__(self, worker: WorkerService) -> None:
        self._worker = worker
        self._scheduler: BatchScheduler = worker.engine.scheduler
        self._actions: dict[str, Callable[[int, bytes], dict[str, object]]] = {
            "save": self._save,
            "restore": self._restore,
            "erase": self._erase,
        }

    async def act(self, http: web.Request) -> web.Response:
        """Handle POST /slots/{id}."""
        name = http.path.rpartition("/")[2]
        slot = parse_natural(name)
        if slot is None or slot >= len(self._scheduler.slots):
            raise ApiError(400, f"There is no slot {name[:80]}.")
        action = self._actions.get(http.query.get("action", ""))
        if action is None:
            raise ApiError(400, "`action` must be save, restore or erase.", param="action")
        body = await http.read()
        return json_response(
            {
                "id_slot": slot,
                **await self._worker.on_engine(lambda: action(slot, body)),
            }
        )

    # On the engine's thread

    def _save(self, slot: int, body: bytes) -> dict[str, object]:
        """Save the slot's running sequence as far as it is computed, or its last cached one."""
        store, path = self._file(body)
        began = time.perf_counter()
        held = self._held_cells(slot)
        if held is None:
            raise ApiError(400, f"Slot {slot} has no cached sequence.")
        tokens = held.tokens[: held.cached]
        try:
            saved = store.save(held.seq_id, path, tokens, held.adapters)
        except OSError as error:
            raise ApiError(500, f"{path.name} can't be written: {error}.", "server_error") from None
        return {
            "filename": path.name,
            "n_saved": len(tokens),
            "n_written": saved.size,
            "timings": {"save_ms": 1e3 * (time.perf_counter() - began)},
        }

    def _restore(self, slot: int, body: bytes) -> dict[str, object]:
        """Load the file into the cache as the slot's; requests in the slot are not affected."""
        store, path = self._file(body)
        began = time.perf_counter()
        try:
            saved: SavedSequence = store.files.read(path)
            cached = store.restore(saved, slot=slot, pending=self._scheduler.pending_tokens)
        except DamagedError as damage:
            raise ApiError(400, f"{path.name} is not restored: {damage}.") from None
        if cached is None:
            raise ApiError(400, f"The cache has no room for {len(saved.tokens)} tokens.")
        return {
            "filename": path.name,
            "n_restored": cached.cached,
            "n_read": saved.size,
            "timings": {"restore_ms": 1e3 * (time.perf_counter() - began)},
        }

    def _erase(self, slot: int, _body: bytes) -> dict[str, object]:
        """Evict the cached sequences of the slot's past requests."""
        cache = self._scheduler.cache
        cached = [one for one in cache.entries if one.slot == slot]
        for one in cached:
            cache.evict(one)
        return {"n_erased": sum(one.cached for one in cached)}

    def _held_cells(self, slot: int) -> HeldCells | None:
        running = self._scheduler.slots[slot]
        if running is not None:
            return running if running.cached else None
        cached = [one for one in self._scheduler.cache.entries if one.slot == slot]
        return cached[-1] if cached else None

    def _file(self, body: bytes) -> tuple[PersistentKvCache, Path]:
        """Return the store and the path of the named file. Raises ApiError."""
        store = self._scheduler.persistent_cache
        if store is None:
            raise ApiError(501, "The worker runs without --slot-save-path.", "not_supported_error")
        name = decode(body, FileName).filename
        if not SAFE_NAME.fullmatch(name) or name.endswith(MANIFEST):
            raise ApiError(400, "`filename` must be a plain name.", param="filename")
        return store, store.files.root / name


class LoadAdapter(msgspec.Struct):
    """vLLM's body of /v1/load_lora_adapter."""

    lora_name: str
    lora_path: str


class UnloadAdapter(msgspec.Struct):
    """vLLM's body of /v1/unload_lora_adapter."""

    lora_name: str
    lora_int_id: int | None = None


class AdapterRoutes:
    """Handlers of the adapter endpoints."""

    def __init__(self, worker: WorkerService) -> None:
        self._worker = worker
        self._names = worker.adapters

    async def list(self, _http: web.Request) -> web.Response:
        """Handle GET /lora-adapters: each adapter with its default scale."""
        return json_response(
            [
                {"id": number, "name": one.name, "path": str(one.path), "scale": one.scale}
                for number, one in enumerate(self._names.all())
            ]
        )

    async def scale(self, http: web.Request) -> web.Response:
        """Handle POST /lora-adapters: set the default scales; adapters left out get 0."""
        scales = decode(await http.read(), list[LoraScale])
        adapters = self._names.all()
        for scale in scales:
            if not 0 <= scale.id < len(adapters):
                raise ApiError(404, f"There is no adapter {scale.id}.", param="id")
        for named in adapters:
            named.scale = 0.0
        for scale in scales:
            adapters[scale.id].scale = float(scale.scale)
        return json_response({"success": True})

    async def load(self, http: web.Request) -> web.Response:
        """Handle POST /v1/load_lora_adapter: register an adapter and load it at once."""
        request = decode(await http.read(), LoadAdapter)
        if not request.lora_name or ":" in request.lora_name:
            raise ApiError(400, "`lora_name` must be a name without colons.", param="lora_name")
        known = self._names.find(request.lora_name)
        named = self._names.add(request.lora_name, request.lora_path)
        try:
            await self._worker.load_adapter(named.path)
        except LoadError as error:
            if known is None:
                self._names.remove(named)
            status = 404 if isinstance(error.__cause__, FileNotFoundError) else 400
            raise ApiError(status, f"{named.path.name} can't be used: {error}.") from None
        return web.Response(text=f"Success: LoRA adapter '{named.name}' added successfully.")

    async def unload(self, http: web.Request) -> web.Response:
        """Handle POST /v1/unload_lora_adapter: unregister it; requests that use it finish."""
        request = decode(await http.read(), UnloadAdapter)
        named = self._names.find(request.lora_name)
        if named is None:
            raise ApiError(404, f"There is no adapter {request.lora_name!r}.", param="lora_name")
        self._names.remove(named)
        await self._worker.discard_adapter(named.path)
        return web.Response(text=f"Success: LoRA adapter '{named.name}' removed successfully.")
