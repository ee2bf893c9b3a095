"""A worker: one process that serves one model. `python -m workers.serve --model X.gguf`."""
