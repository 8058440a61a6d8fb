"""Let `python -m distill_jax` be the program."""

import sys

from distill_jax.main import main

sys.exit(main())
