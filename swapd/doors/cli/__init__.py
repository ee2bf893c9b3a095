"""The command line: `./model`, or `swapd` where it is installed."""
