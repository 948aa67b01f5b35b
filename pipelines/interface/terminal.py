"""Tables on the terminal."""

import sys

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

COLUMNS_ELSEWHERE = 160
"""Characters in a line of what is drawn where no terminal says how many it has."""


def print_table(table: Table) -> None:
    """Print a table with every value whole: on several lines where it is long, in a pipe or file each row on one.

    So `grep` finds whole rows. Line ends in a value are blanks there.
    """
    if sys.stdout.isatty():
        for column in table.columns:
            column.overflow = "fold"
        Console(markup=False).print(table)
        return
    columns = [[" ".join(str(cell).split()) for cell in (column.header, *column.cells)] for column in table.columns]
    widths = [max(map(cell_len, column)) for column in columns]
    for number, row in enumerate(zip(*columns, strict=True)):
        if number or table.show_header:
            padded = (
                " " * (width - cell_len(cell)) + cell
                if column.justify == "right"
                else cell + " " * (width - cell_len(cell))
                for cell, width, column in zip(row, widths, table.columns, strict=True)
            )
            print("  ".join(padded).rstrip())
