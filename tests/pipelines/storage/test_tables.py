"""Covers pipelines.storage.tables."""

import ast
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.errors import UserError
from pipelines.storage.tables import RowTable
from tests.sources import sources

VALUES = pa.table({"x": pa.array(np.random.default_rng(0).integers(0, 2**60, 1_000))})


def write_rows(uri: str) -> None:
    with RowTable(uri, VALUES.schema) as table:
        for row in VALUES.to_pylist():
            table.add(row)


def read_batches(uri: str) -> pa.Table:
    with storage.open_parquet(uri) as file:
        return pa.Table.from_batches(storage.iter_batches(file, 100))


def read_small(uri: str) -> pa.Table:
    return next(storage.read_small_parquets([uri], VALUES.schema, threads=1))


@pytest.mark.parametrize("write", [lambda uri: storage.write_table(uri, VALUES), write_rows])
@pytest.mark.parametrize(
    "read",
    [
        storage.read_parquet,
        read_small,
        read_batches,
        lambda uri: storage.select_parquet(uri, ["x"]),
        lambda uri: storage.select_parquet(uri, ["x"], [("x", ">", -1)]),
    ],
)
def test_a_bit_that_turns_inside_a_page_names_the_file_and_is_never_a_value(tmp_path, write, read):
    path = tmp_path / "a.parquet"
    write(str(path))
    data = path.read_bytes()
    assert read(str(path)).equals(VALUES)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start, found = column.dictionary_page_offset, 0
    for place in range(start, start + column.total_compressed_size, 97):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            assert read(str(path)).equals(VALUES)  # a page's header has statistics in it, which nobody needs
        except UserError as error:
            assert re.fullmatch(r".*a\.parquet: damaged \([^\n]*\)", str(error))
            found += 1
    assert found > 90


def test_a_name_of_a_column_that_is_no_text_names_the_file(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"speaker": [1]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"speaker", b"spea\xee\x01r"))
    with pytest.raises(UserError, match=r"a\.parquet: not a Parquet file \('utf-8' codec can't decode"):
        storage.read_parquet(str(path), VALUES.schema)


def test_a_table_without_checksums_is_read_as_before(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(VALUES, path)
    assert storage.read_parquet(str(path)).equals(VALUES)
    assert storage.select_parquet(str(path), ["x"]).equals(VALUES)
    with pytest.raises(FileNotFoundError, match="no such file"):
        storage.select_parquet(str(tmp_path / "absent"), ["x"])


def test_every_reader_compares_and_every_writer_writes_checksums():
    """Corpora's own tables are others' files; all that is ours goes through one module, or names the checksums."""
    for module, path in sources().items():
        if not module.startswith("pipelines.") or module.startswith("pipelines.manifest.corpora"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("pq.write_table", "pq.ParquetWriter"):
                assert "PAGE_CHECKSUMS" in ast.unparse(node), f"{path}:{node.lineno}"
            if name in ("pq.read_table", "pq.ParquetFile"):
                assert module == "pipelines.storage.tables", f"{path}:{node.lineno}"
                assert "page_checksum_verification=True" in ast.unparse(node), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "read",
    [
        lambda uri: storage.read_parquet(uri, pa.schema([("b", pa.int64())]), only_schema=True),
        lambda uri: next(storage.read_small_parquets([uri], pa.schema([("b", pa.int64())]), threads=1)),
        lambda uri: list(all_batches(uri)),
    ],
)
def test_a_column_that_loses_its_rows_names_the_file(tmp_path, read):
    uri = str(tmp_path / "t.parquet")
    storage.write_table(uri, pa.table({"a": range(6), "b": range(6)}))
    whole, silent = (tmp_path / "t.parquet").read_bytes(), 0
    for place in range(len(whole) - 1):
        for bit in (1, 4, 32):
            (tmp_path / "t.parquet").write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                found = read(uri)
            except UserError:
                continue
            rows = found if isinstance(found, pa.Table) else pa.Table.from_batches(found or [])
            silent += rows.num_rows != 6
    assert silent == 0


def all_batches(uri):
    with storage.open_parquet(uri) as file:
        yield from storage.iter_batches(file, 4, ["b"])


def test_small_files_come_in_order_with_the_columns_that_they_have(tmp_path):
    schema, uris = pa.schema([("a", pa.int64()), ("b", pa.string())]), []
    for number in range(40):
        columns = {"c": [0], "b": [str(number)], "a": [number]}
        del columns["b" if number % 3 == 1 else "c"]
        uris.append(str(tmp_path / f"{number}.parquet"))
        storage.write_table(uris[-1], pa.table(columns), compression="snappy", use_dictionary=False)
    found = [table.to_pylist()[0] for table in storage.read_small_parquets(uris, schema, threads=2)]
    assert found == [{"a": n} if n % 3 == 1 else {"b": str(n), "a": n} for n in range(40)]


@pytest.mark.parametrize(
    "table, said",
    [
        (pa.table({"x": ["1"]}), "7.parquet: column x is of type string, not int64"),
        (pa.table([[1], [2]], names=["x", "x"]), "7.parquet: column x is there 2 times"),
        (None, "7.parquet: no such file"),
    ],
)
def test_the_small_file_that_is_unlike_the_others_is_named(tmp_path, table, said):
    uris = [str(tmp_path / f"{number}.parquet") for number in range(9)]
    for uri in uris:
        storage.write_table(uri, VALUES)
    (tmp_path / "7.parquet").unlink()
    if table:
        storage.write_table(uris[7], table)
    with pytest.raises(UserError, match=said):
        list(storage.read_small_parquets(uris, VALUES.schema, threads=2))
