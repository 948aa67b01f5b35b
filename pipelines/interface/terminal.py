"""Tables on the terminal."""

import sys

from rich.console import Console
from rich.table import Table

COLUMNS_ELSEWHERE = 160
"""Characters in a line where no terminal says how many it has."""


def print_table(table: Table) -> None:
    """Print a table with every value whole, on several lines where it is long."""
    for column in table.columns:
        column.overflow = "fold"
    Console(markup=False, width=None if sys.stdout.isatty() else COLUMNS_ELSEWHERE).print(table)
