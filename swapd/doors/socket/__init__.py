"""The socket: newline-delimited JSON for those who may open a file of this home."""
