"""`python -m paritybit`."""

from paritybit.cli import main

main()
