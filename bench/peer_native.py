"""The peer: llama.cpp's own server in a separate process, from the package `xllamacpp`.

It runs in the Python that has that package, so it imports only the standard library otherwise.
Its one argument is a JSON object of settings; it prints one line of JSON when it is ready, and
ends when its standard input does.
"""

import json
import os
import sys
import time

began = time.perf_counter()
try:
    import xllamacpp
except ImportError as error:
    print(json.dumps({"missing": str(error)}), flush=True)
    sys.exit(3)
imported = time.perf_counter()


def main() -> None:
    """Serve until standard input ends."""
    wanted = json.loads(sys.argv[1])
    params = xllamacpp.CommonParams()
    params.model.path = wanted["model"]
    params.n_ctx = wanted["context"]
    params.n_parallel = wanted["slots"]
    params.kv_unified = True  # As in the built-in worker, slots share the cells.
    params.cpuparams.n_threads = wanted["threads"]
    params.cpuparams_batch.n_threads = wanted["threads"]
    params.warmup = wanted["warmup"]
    params.cache_ram_mib = 0  # every prompt is new here: keeping them would only cost it time
    params.fit_params = False  # likewise trying how much of the model fits into memory
    params.verbosity = 0
    server = xllamacpp.Server(params)
    ready = time.perf_counter()
    word = {
        "url": server.listening_address,
        "import_seconds": imported - began,
        "load_seconds": ready - imported,
        "version": xllamacpp.__version__,
    }
    print(json.dumps(word), flush=True)
    sys.stdin.buffer.read()
    os._exit(0)


main()
