"""The support table in the package says what the tests go through, and nothing else."""

import support_table

from moekit.models import FAMILIES


def test_the_table_is_current() -> None:
    assert support_table.TARGET.read_text(encoding="utf-8") == support_table.table(), (
        "run `python tests_py/support_table.py`"
    )


def test_every_family_is_compared_with_a_reference() -> None:
    for family in FAMILIES:
        assert support_table.marks(family)[0], family
