"""`python -m p2psync`."""

from p2psync.cli import main

main()
