"""The endpoints of adapters: llama-server's and vLLM's."""

from __future__ import annotations

import msgspec
from aiohttp import web

from workers.binding import LoadError
from workers.errors import ApiError
from workers.http_json import json_response
from workers.openai_requests import LoraScale, decode
from workers.worker import Worker


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

    def __init__(self, worker: Worker) -> None:
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
