from pipelines.interface.markdown import markdown_table


def test_cells_end_neither_their_line_nor_their_column():
    table = markdown_table(("task", "value"), [("a|b", "one\ntwo")])
    assert table == "| task | value |\n| --- | --- |\n| a\\|b | one two |\n"
