"""Loading: from settings to a worker with its model, contexts, cache and speculation."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from workers.engine.embeddings import SEQUENCES
from workers.engine.engine import Engine
from workers.engine.kv_store import KvFiles, PersistentKvCache, fingerprint, identity_of, warn
from workers.engine.speculation import MAX_DRAFT_TOKENS, DraftModel, PromptLookup, Speculation
from workers.engine.threads import usable_cores
from workers.llama.context import Context, ContextOptions
from workers.llama.devices import devices, memory_held
from workers.llama.model import LlamaLog, LoadError, Model, build
from workers.service import WorkerService
from workers.settings import Settings

DEFAULT_CONTEXT = 4096
SMALL_MODEL = 16 * 1024 * 1024
"""Bytes of weights below which a second thread costs more than it computes: the demo models
generate 9,100 tokens/s on one thread and 6,400 on two (8 streams, 2 cores)."""
CACHED_SEQUENCES = 8
"""Sequences that may stay in the cache beside those in slots. Beside its cells, each costs a row
of logits in two buffers. If a sequence can't be truncated (recurrent models), each would cost a
whole state, so there are only as many sequences as slots."""
LARGEST_SEQ_MAX = 256  # LLAMA_MAX_SEQ


def load(settings: Settings) -> WorkerService:
    """Load the model and make its engine. Raises LoadError; called on the engine's thread."""
    began = time.monotonic()
    log = LlamaLog(verbose=settings.verbose, silent=not settings.log)
    before = devices() if settings.n_gpu_layers else []
    model = _load_model(settings, settings.model, log)
    cores = 1 if model.size < SMALL_MODEL else usable_cores()
    threads = settings.threads if settings.threads > 0 else cores
    options = ContextOptions(
        n_ctx=_cells(settings, model.n_ctx_train),
        n_batch=settings.batch_size,
        n_ubatch=settings.ubatch_size,
        n_seq_max=min(
            settings.parallel + (CACHED_SEQUENCES if model.can_truncate else 0), LARGEST_SEQ_MAX
        ),
        n_draft_rows=MAX_DRAFT_TOKENS if settings.spec_lookup or settings.model_draft else 0,
        threads=threads,
        threads_batch=settings.threads_batch if settings.threads_batch > 0 else threads,
        flash_attention=settings.flash_attn,
        type_k=settings.cache_type_k,
        type_v=settings.cache_type_v,
    )
    engine = Engine(
        model,
        options,
        _embedding_options(settings, options, model),
        settings.parallel,
        settings.max_loras,
        log,
    )
    if settings.slot_save_path is not None:
        engine.scheduler.persistent_cache = _persistent_cache(
            settings, settings.slot_save_path, engine
        )
    engine.runner.speculation = _speculation(settings, engine, log)
    taken = memory_held(before, devices() if before else [])
    return WorkerService(
        settings, engine, log, load_seconds=time.monotonic() - began, devices=taken
    )


def _cells(settings: Settings, trained: int) -> int:
    """Return the number of cells that all slots share."""
    if settings.ctx_size is None:
        return min(DEFAULT_CONTEXT, trained * settings.parallel)
    return settings.ctx_size or trained


def _speculation(settings: Settings, engine: Engine, log: LlamaLog) -> Speculation | None:
    """Return the speculation; None if it is off. Raises LoadError for the draft model."""
    if not (settings.spec_lookup or settings.model_draft):
        return None
    if not engine.model.can_truncate:
        warn("speculation is off: this model can't drop rejected draft tokens from its memory")
        return None
    if settings.model_draft is None:
        return Speculation(PromptLookup(), settings.draft_max)
    model = _load_model(settings, settings.model_draft, log)
    options = replace(engine.options, n_seq_max=settings.parallel, n_draft_rows=0)
    context = Context(model, options, log)
    drafter = DraftModel(model, context, engine.model, options.threads)
    return Speculation(drafter, settings.draft_max)


def _load_model(settings: Settings, path: str, log: LlamaLog) -> Model:
    return Model(
        path,
        gpu_layers=settings.n_gpu_layers,
        mmap=settings.mmap,
        mlock=settings.mlock,
        log=log,
    )


def _persistent_cache(settings: Settings, root: str, engine: Engine) -> PersistentKvCache:
    """Return the persistent KV cache, with an identity of everything that its data depend on."""
    options = engine.options
    identity = identity_of(
        {
            "model": fingerprint(Path(settings.model)),
            "context": options.n_ctx,
            "flash attention": options.flash_attention,
            "cache types": (options.type_k, options.type_v),
            "GPU layers": settings.n_gpu_layers,
            "llama.cpp": build(),
        }
    )
    files = KvFiles(Path(root), identity, settings.slot_save_bytes)
    return PersistentKvCache(files, engine.context, engine.scheduler.cache, engine.counters)


def _embedding_options(settings: Settings, options: ContextOptions, model: Model) -> ContextOptions:
    """Return the options of the context for embeddings.

    An input is computed in one batch of `--ubatch-size` tokens, as in llama-server. For a model
    that can only embed, it is `--batch-size` if that is more.
    """
    declared = model.meta(f"{model.meta('general.architecture')}.pooling_type")
    pooling = {"1": "mean", "2": "cls", "3": "last", "4": "rank"}.get(declared or "", "mean")
    if settings.pooling == "rank" and pooling != "rank":
        # llama.cpp would abort.
        raise LoadError("this model can't rank: it has no classification head")
    most = options.n_ubatch if declared in (None, "0") else max(options.n_ubatch, options.n_batch)
    size = min(most, model.n_ctx_train)
    return ContextOptions(
        n_ctx=size,
        n_batch=size,
        n_ubatch=size,
        n_seq_max=SEQUENCES,
        threads=options.threads,
        threads_batch=options.threads_batch,
        flash_attention=options.flash_attention,
        pooling=settings.pooling or pooling,
    )
