"""llama-server's POST /slots/{id}?action=save|restore|erase.

The endpoints of adapters: llama-server's and vLLM's.
"""

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

PLAIN_NAME = re.compile(r"[^\x00-\x1f/\\.][^\x00-\x1f/\\]{0,199}")
"""Names of files, and nothing that leads out of the folder or hides in it."""


class FileName(msgspec.Struct):
    """The body of save and restore."""

    filename: str


class SlotRoutes:
    """What a slot has in the cache, written to a file of a name that the client chooses."""

    def __init__(self, worker: WorkerService) -> None:
        self._worker = worker
        self._scheduler: BatchScheduler = worker.engine.scheduler
        self._actions: dict[str, Callable[[int, bytes], dict[str, object]]] = {
            "save": self._save,
            "restore": self._restore,
            "erase": self._erase,
        }

    async def act(self, http: web.Request) -> web.Response:
        """The handler."""
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
        """What is in the slot, or was in it last; a running one is written as far as it is."""
        conversations, path = self._file(body)
        began = time.perf_counter()
        held = self._held(slot)
        if held is None:
            raise ApiError(400, f"Slot {slot} has nothing in the cache.")
        tokens = held.tokens[: held.cached]
        try:
            saved = conversations.save(held.seq_id, path, tokens, held.adapters)
        except OSError as error:
            raise ApiError(500, f"{path.name} can't be written: {error}.", "server_error") from None
        return {
            "filename": path.name,
            "n_saved": len(tokens),
            "n_written": saved.size,
            "timings": {"save_ms": 1e3 * (time.perf_counter() - began)},
        }

    def _restore(self, slot: int, body: bytes) -> dict[str, object]:
        """Makes what is in the file the slot's; requests in it are not touched."""
        conversations, path = self._file(body)
        began = time.perf_counter()
        try:
            saved: SavedSequence = conversations.files.read(path)
            kept = conversations.restore(saved, slot=slot, pending=self._scheduler.pending_tokens)
        except DamagedError as damage:
            raise ApiError(400, f"{path.name} is not restored: {damage}.") from None
        if kept is None:
            raise ApiError(400, f"There is no room for the {len(saved.tokens)} tokens in it.")
        return {
            "filename": path.name,
            "n_restored": kept.cached,
            "n_read": saved.size,
            "timings": {"restore_ms": 1e3 * (time.perf_counter() - began)},
        }

    def _erase(self, slot: int, _body: bytes) -> dict[str, object]:
        """Gives up all that was kept of the slot's past requests."""
        cache = self._scheduler.cache
        mine = [kept for kept in cache.entries if kept.slot == slot]
        for kept in mine:
            cache.evict(kept)
        return {"n_erased": sum(kept.cached for kept in mine)}

    def _held(self, slot: int) -> HeldCells | None:
        running = self._scheduler.slots[slot]
        if running is not None:
            return running if running.cached else None
        mine = [kept for kept in self._scheduler.cache.entries if kept.slot == slot]
        return mine[-1] if mine else None

    def _file(self, body: bytes) -> tuple[PersistentKvCache, Path]:
        """Where the named file lies. Raises ApiError."""
        conversations = self._scheduler.persistent_cache
        if conversations is None:
            raise ApiError(
                501, "Start the worker with --slot-save-path for this.", "not_supported_error"
            )
        name = decode(body, FileName).filename
        if not PLAIN_NAME.fullmatch(name) or name.endswith(MANIFEST):
            raise ApiError(400, "`filename` must be a plain name.", param="filename")
        return conversations, conversations.files.root / name


class LoadAdapter(msgspec.Struct):
    """vLLM's body of /v1/load_lora_adapter."""

    lora_name: str
    lora_path: str


class UnloadAdapter(msgspec.Struct):
    """vLLM's body of /v1/unload_lora_adapter."""

    lora_name: str
    lora_int_id: int | None = None


class AdapterRoutes:
    """The handlers."""

    def __init__(self, worker: WorkerService) -> None:
        self._worker = worker
        self._names = worker.adapters

    async def list(self, _http: web.Request) -> web.Response:
        """GET /lora-adapters: each with the scale that requests get which name none."""
        return json_response(
            [
                {"id": number, "name": one.name, "path": str(one.path), "scale": one.scale}
                for number, one in enumerate(self._names.all())
            ]
        )

    async def scale(self, http: web.Request) -> web.Response:
        """POST /lora-adapters: that scale, for each one; 0 for those that are left out."""
        scales = decode(await http.read(), list[LoraScale])
        adapters = self._names.all()
        for wish in scales:
            if not 0 <= wish.id < len(adapters):
                raise ApiError(404, f"There is no adapter {wish.id}.", param="id")
        for named in adapters:
            named.scale = 0.0
        for wish in scales:
            adapters[wish.id].scale = float(wish.scale)
        return json_response({"success": True})

    async def load(self, http: web.Request) -> web.Response:
        """POST /v1/load_lora_adapter: names an adapter, and loads it before it is asked for."""
        wish = decode(await http.read(), LoadAdapter)
        if not wish.lora_name or ":" in wish.lora_name:
            raise ApiError(400, "`lora_name` must be a name without colons.", param="lora_name")
        known = self._names.find(wish.lora_name)
        named = self._names.add(wish.lora_name, wish.lora_path)
        try:
            await self._worker.load_adapter(named.path)
        except LoadError as error:
            if known is None:
                self._names.remove(named)
            status = 404 if isinstance(error.__cause__, FileNotFoundError) else 400
            raise ApiError(status, f"{named.path.name} can't be used: {error}.") from None
        return web.Response(text=f"Success: LoRA adapter '{named.name}' added successfully.")

    async def unload(self, http: web.Request) -> web.Response:
        """POST /v1/unload_lora_adapter: forgets it; requests that use it come to their end."""
        wish = decode(await http.read(), UnloadAdapter)
        named = self._names.find(wish.lora_name)
        if named is None:
            raise ApiError(404, f"There is no adapter {wish.lora_name!r}.", param="lora_name")
        self._names.remove(named)
        await self._worker.discard_adapter(named.path)
        return web.Response(text=f"Success: LoRA adapter '{named.name}' removed successfully.")
