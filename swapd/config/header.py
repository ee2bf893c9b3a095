"""The line by which a configuration that sync wrote is known."""

MARK = "# Written by swapd sync"
HEADER = f"{MARK}; edit custom_models.yaml instead: what is changed here gets lost.\n"
