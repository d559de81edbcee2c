"""The `moekit` command: one file per command, found by the table in `main.py`."""
