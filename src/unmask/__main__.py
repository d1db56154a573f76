"""`python -m unmask` is `unmask`; torchrun starts it this way."""

from unmask.cli import main

main()
