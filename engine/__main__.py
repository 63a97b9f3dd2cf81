"""`python -m tilefuse`: the command line, for where the script is not on the path."""

from tilefuse.cli import main

main()
