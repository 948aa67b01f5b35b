"""Tables on the terminal."""

import sys

from rich.console import Console
from rich.table import Table

COLUMNS_ELSEWHERE = 160
"""Characters in a line of what is drawn where no terminal says how many it has."""
ONE_LINE = 1_000_000


def print_table(table: Table) -> None:
    """Print a table with every value whole: on several lines where it is long, in a pipe or file each row on one.

    So `grep` finds whole rows.
    """
    for column in table.columns:
        column.overflow = "fold"
    if sys.stdout.isatty():
        Console(markup=False).print(table)
        return
    console = Console(markup=False, width=ONE_LINE)
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))
