"""Which variables of swapd's own environment its workers get to see.

What finds programs and libraries, says who and where one is, and steers a GPU or its libraries.
Nothing else: not what swapd itself is told by, and no keys. `env` of a model sets more, and
`pass_env` names more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

USUAL = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TERM", "TZ", "LANG", "LANGUAGE"),
    *("LC_*", "XDG_*", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_*", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE"),
    *("GGML_*", "LLAMA_*", "OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*"),
    *("CUDA*", "NVIDIA_*", "NCCL_*", "HIP_*", "HSA_*", "ROCR_*", "ROCM_*", "GPU_*", "AMD_*"),
    *("METAL_*", "MTL_*", "VK_*", "MESA_*", "ZE_*", "ONEAPI_*", "SYCL_*", "ASCEND_*", "MUSA_*"),
)
"""Names, and beginnings of names before a `*`."""

SECRET = frozenset(
    {"KEY", "KEYS", "TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "CREDENTIALS"}
)
"""A variable with one of these words in its name is passed on only by its whole name."""


def for_workers(own: Mapping[str, str], named: Sequence[str]) -> dict[str, str]:
    """What of `own` a worker gets: the usual, and what `named` says, `*` at ends allowed."""
    return {name: value for name, value in own.items() if _passes(name, named)}


def _passes(name: str, named: Sequence[str]) -> bool:
    if name in named:
        return True
    if SECRET & set(name.upper().split("_")):
        return False
    return any(fnmatchcase(name, pattern) for pattern in (*USUAL, *named))
