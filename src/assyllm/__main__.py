"""``python -m assyllm``."""

from assyllm.cli import main

main()
