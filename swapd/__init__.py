"""swapd: a reverse proxy that supervises one worker process per language model."""

__version__ = "0.1.0"
