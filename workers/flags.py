"""The command line: llama-server's flags, parsed into Settings.

A command can move between llama-server and this worker with only its first word changed, so flags
for behaviour that this worker always has are accepted too. An unknown flag is an error that names
the nearest one: a typo must not become a default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.settings import Sampling, Settings, sampler_order

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


class FlagError(Exception):
    """An invalid command line; the message is one sentence."""


@dataclass(frozen=True)
class Flag:
    """A flag: its spellings, its value, and the setting that it changes."""

    names: str
    """Spellings, separated by spaces."""
    target: str
    """Name of the setting, `sampling.` before a sampler's; empty: accepted without effect."""
    parse: Callable[[str], Any] | None = None
    """Parser of its value; None: the flag takes no value."""
    value: Any = None
    """Value of a flag that takes none."""
    implied: Any = None
    """Value of the bare flag; None: the value is required."""
    repeatable: bool = False
    """True: the values of repeated flags are collected in their order."""


def _whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise ValueError(f"must be from {least} to {most}")
        return number

    return read


def _number(least: float, most: float = 1e9) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = float(text)
        if not least <= number <= most:
            raise ValueError(f"must be from {least:g} to {most:g}")
        return number

    return read


def _one_of(*choices: str, **synonyms: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        text = synonyms.get(text, text)
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return read


def _samplers(text: str) -> tuple[str, ...]:
    return sampler_order([name for name in text.split(";") if name])


def _breaker(text: str) -> str:
    """Decode `none` as an empty text, and the escapes for newlines and tabs."""
    return "" if text == "none" else text.replace("\\n", "\n").replace("\\t", "\t")


def _layers(text: str) -> int:
    return -1 if text in {"auto", "all"} else _whole(-1)(text)


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("must be a JSON object")
    return value


def _json(text: str) -> str:
    json.loads(text)
    return text


def _bias(text: str) -> tuple[int, float]:
    """Parse TOKEN+BIAS or TOKEN-BIAS; the bias may be `inf`."""
    parts = re.fullmatch(r"(\d{1,9})([+-])(\d+\.?\d*|\.\d+|inf)", text, re.ASCII)
    if parts is None:
        raise ValueError("must be TOKEN+BIAS or TOKEN-BIAS, the token by its number")
    return int(parts[1]), float(parts[2] + parts[3])


def _named_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path or ":" in name:
        raise ValueError("must be NAME=PATH, the name without colons")
    return name, path


def _paths(text: str) -> tuple[tuple[str, float], ...]:
    """Split at commas, unless the whole text is the path of an existing file."""
    if Path(text).exists():
        return ((text, 1.0),)
    return tuple((path, 1.0) for path in text.split(","))


def _scaled_paths(text: str) -> tuple[tuple[str, float], ...]:
    """Split at commas into PATH:SCALE, unless the whole text is one with an existing file."""
    whole = Path(text.rpartition(":")[0]).is_file()
    pairs = [one.rpartition(":") for one in ([text] if whole else text.split(","))]
    if not all(path for path, _, _ in pairs):
        raise ValueError("must be PATH:SCALE")
    return tuple((path, float(scale)) for path, _, scale in pairs)


def _file(text: str) -> str:
    return Path(text).read_text(encoding="utf-8")


FLAGS = (
    Flag("-m --model", "model", str),
    Flag("--host", "host", str),
    Flag("--port", "port", _whole(0, 65535)),
    Flag("-a --alias", "alias", str),
    Flag("-c --ctx-size", "ctx_size", _whole(0)),
    Flag("-np --parallel", "parallel", _whole(1, 256)),
    Flag("-t --threads", "threads", _whole(-1, 512)),
    Flag("-tb --threads-batch", "threads_batch", _whole(-1, 512)),
    Flag("-b --batch-size", "batch_size", _whole(1)),
    Flag("-ub --ubatch-size", "ubatch_size", _whole(1)),
    Flag("-ngl --gpu-layers --n-gpu-layers", "n_gpu_layers", _layers),
    Flag("--mmap", "mmap", value=True),
    Flag("--no-mmap", "mmap", value=False),
    Flag("--mlock", "mlock", value=True),
    Flag(
        "-fa --flash-attn",
        "flash_attn",
        _one_of("on", "off", "auto", **{"1": "on", "0": "off", "true": "on", "false": "off"}),
        implied="on",
    ),
    Flag("-ctk --cache-type-k", "cache_type_k", _one_of(*KV_TYPES)),
    Flag("-ctv --cache-type-v", "cache_type_v", _one_of(*KV_TYPES)),
    Flag("--pooling", "pooling", _one_of("mean", "cls", "last", "rank")),
    Flag("--rerank --reranking", "pooling", value="rank"),
    Flag("--chat-template", "chat_template", str),
    Flag("--chat-template-file", "chat_template", _file),
    Flag("--chat-template-kwargs", "chat_template_kwargs", _json_object),
    Flag("-n --predict --n-predict", "predict", _whole(-1)),
    Flag("-s --seed", "sampling.seed", _whole(-1, 2**32 - 1)),
    Flag("--temp --temperature", "sampling.temperature", _number(0)),
    Flag("--top-k", "sampling.top_k", _whole(-1)),
    Flag("--top-p", "sampling.top_p", _number(0, 1)),
    Flag("--min-p", "sampling.min_p", _number(0, 1)),
    Flag("--top-nsigma --top-n-sigma", "sampling.top_n_sigma", _number(-1)),
    Flag("--typical --typical-p", "sampling.typical_p", _number(0, 1)),
    Flag("--xtc-probability", "sampling.xtc_probability", _number(0, 1)),
    Flag("--xtc-threshold", "sampling.xtc_threshold", _number(0)),
    Flag("--dynatemp-range", "sampling.dynatemp_range", _number(0)),
    Flag("--dynatemp-exp", "sampling.dynatemp_exponent", _number(-1e9)),
    Flag("--mirostat", "sampling.mirostat", _whole(0, 2)),
    Flag("--mirostat-ent", "sampling.mirostat_tau", _number(0)),
    Flag("--mirostat-lr", "sampling.mirostat_eta", _number(0)),
    Flag("--adaptive-target", "sampling.adaptive_target", _number(-1, 1)),
    Flag("--adaptive-decay", "sampling.adaptive_decay", _number(0, 0.99)),
    Flag("--dry-multiplier", "sampling.dry_multiplier", _number(0)),
    Flag("--dry-base", "sampling.dry_base", _number(0)),
    Flag("--dry-allowed-length", "sampling.dry_allowed_length", _whole(0)),
    Flag("--dry-penalty-last-n", "sampling.dry_penalty_last_n", _whole(-1)),
    Flag("--dry-sequence-breaker", "sampling.dry_sequence_breakers", _breaker, repeatable=True),
    Flag("--ignore-eos", "ignore_eos", value=True),
    Flag("-l --logit-bias", "sampling.logit_bias", _bias, repeatable=True),
    Flag("--grammar", "grammar", str),
    Flag("--grammar-file", "grammar", _file),
    Flag("-j --json-schema", "json_schema", _json),
    Flag("-jf --json-schema-file", "json_schema", lambda text: _json(_file(text))),
    Flag("--samplers", "sampling.samplers", _samplers),
    Flag("--sampler-seq --sampling-seq", "sampling.samplers", sampler_order),
    Flag("--repeat-last-n", "sampling.repeat_last_n", _whole(-1)),
    Flag("--repeat-penalty", "sampling.repeat_penalty", _number(1e-6)),
    Flag("--presence-penalty", "sampling.presence_penalty", _number(-1e9)),
    Flag("--frequency-penalty", "sampling.frequency_penalty", _number(-1e9)),
    Flag("--adapter", "adapter_paths", _named_path, repeatable=True),
    Flag("--adapters", "adapters", str),
    Flag("--lora", "loras", _paths, repeatable=True),
    Flag("--lora-scaled", "loras", _scaled_paths, repeatable=True),
    Flag("--lora-init-without-apply", "_idle_loras", value=True),
    Flag("--max-loras", "max_loras", _whole(1)),
    Flag("--spec-lookup", "spec_lookup", value=True),
    Flag("-md --model-draft", "model_draft", str),
    Flag("--draft --draft-n --draft-max", "draft_max", _whole(1, 16)),
    Flag("--deterministic", "deterministic", value=True),
    Flag("--slot-save-path", "slot_save_path", str),
    Flag("--slot-save-bytes", "slot_save_bytes", _whole(0, 2**63 - 1)),
    Flag("-v --verbose --log-verbose", "verbose", value=True),
    Flag("--log-disable", "log", value=False),
    Flag("-cb --cont-batching", ""),
    Flag("-kvu --kv-unified", ""),
    Flag("--jinja", ""),
    Flag("--embedding --embeddings", ""),
    Flag("--metrics", ""),
    Flag("--slots", ""),
    Flag("--no-webui", ""),
    Flag("--no-warmup", ""),
)


def parse(arguments: list[str]) -> Settings:
    """Parse `arguments`, without the program's name, into settings. Raises FlagError."""
    flags = {name: flag for flag in FLAGS for name in flag.names.split()}
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        flag = flags.get(name)
        if flag is None:
            raise FlagError(_unknown(name, list(flags)))
        value = _value(flag, name, rest, flags)
        found[flag.target] = (*found.get(flag.target, ()), value) if flag.repeatable else value
    if "model" not in found:
        raise FlagError("no model: name a GGUF file with --model")
    sampling = {
        target.removeprefix("sampling."): found.pop(target)
        for target in list(found)
        if target.startswith("sampling.")
    }
    if "logit_bias" in sampling:
        sampling["logit_bias"] = dict(sampling["logit_bias"])
    found.pop("", None)
    _join_loras(found)
    settings = Settings(**found, sampling=Sampling(**sampling))
    if settings.batch_size < settings.parallel:
        raise FlagError(
            "--batch-size must be at least --parallel: each slot adds a token to a batch"
        )
    if settings.spec_lookup and settings.model_draft:
        raise FlagError("--spec-lookup and --model-draft are two ways of speculation: choose one")
    if settings.grammar is not None and settings.json_schema is not None:
        raise FlagError("--grammar and --json-schema both constrain the answers: choose one")
    return settings


def _join_loras(found: dict[str, Any]) -> None:
    """Flatten the adapters, as each --lora may name several; set the scales of idle ones to 0."""
    idle = found.pop("_idle_loras", False)
    loras = [one for several in found.get("loras", ()) for one in several]
    found["loras"] = tuple((path, 0.0 if idle else scale) for path, scale in loras)


def _value(flag: Flag, name: str, rest: list[str], flags: dict[str, Flag]) -> Any:
    """Return the value of `flag`, removed from the front of `rest` if it is there."""
    if flag.parse is None:
        return flag.value
    if flag.implied is not None and (not rest or rest[0] in flags):
        return flag.implied
    if not rest:
        raise FlagError(f"{name} needs a value")
    text = rest.pop(0)
    try:
        return flag.parse(text)
    except (ValueError, TypeError) as error:
        raise FlagError(f"{name} {text}: {error}") from error
    except OSError as error:
        raise FlagError(f"{name} {text}: {error.strerror}") from error


def _unknown(name: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown flag {name}{hint}"


def help_text() -> str:
    """Return the usage text, with one flag in a line."""
    lines = ["usage: python -m workers.serve --model FILE [flags, named as llama-server's]", ""]
    for flag in FLAGS:
        value = "" if flag.parse is None else " VALUE"
        note = "" if flag.target else "  (accepted without effect)"
        lines.append(f"  {', '.join(flag.names.split())}{value}{note}")
    return "\n".join(lines)
