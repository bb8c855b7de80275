"""`python -m sanbench_cli` is `sanbench`."""

from sanbench_cli.main import main

main()
