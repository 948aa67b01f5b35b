"""Tables in a pipe."""

from rich.table import Table

from pipelines.interface.terminal import print_table


def test_a_row_in_a_pipe_is_one_line_with_every_value_whole(capsys):
    table = Table("job", "command", box=None, pad_edge=False)
    long = "salmonn extract " + " ".join(f"key{number}=value" for number in range(60))
    table.add_row("a", long)
    table.add_row("b", "short\u2028and\nlong")
    print_table(table)
    assert capsys.readouterr().out.splitlines() == ["job  command", f"a    {long}", "b    short and long"]
