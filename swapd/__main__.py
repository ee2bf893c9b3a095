"""`python -m swapd`: the command line."""

from swapd.doors.cli.main import main

main()
