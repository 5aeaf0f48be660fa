"""``python -m edgelean``: the command line."""

from edgelean.cli import main

main()
