"""`python -m moekit` is the `moekit` command."""

import sys

from .cli.main import main

sys.exit(main())
