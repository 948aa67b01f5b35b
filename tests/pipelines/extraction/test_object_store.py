"""The data path against a local S3 server."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines import storage
from pipelines.cache.tools.config import CacheVerifyConfig
from pipelines.cache.tools.verify import cache_verify
from pipelines.extraction.config import ExtractConfig
from pipelines.extraction.extract import extract
from pipelines.manifest.corpora.table import TableConfig, prepare_table
from tests.pipelines.builders import fill, make_worker, prepare_tones
from tests.s3_server import S3Server, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server("bucket") as server:
        yield server


@pytest.mark.ray
def test_extraction_from_object_store_to_object_store_gives_the_bytes_of_a_local_one(server, tmp_path, ray_session):
    fill(tmp_path / "c", prepare_tones(tmp_path, num_clips=8), make_worker(tmp_path / "c"), shard_nbytes=1_000_000)
    manifest, cache = server.uri("bucket/m"), server.uri("bucket/c")
    audio_root = server.upload(tmp_path / "audio", "bucket/audio")
    prepare_table(TableConfig(table=str(tmp_path / "table.jsonl"), audio_root=audio_root, out=manifest))
    keys = {"whisper": "tiny", "beats": "tiny", "shard_megabytes": 1, "workers": 1}
    report = extract(ExtractConfig(manifest=manifest, cache=cache, **keys))
    assert (report.clips, report.rejects) == (8, 0)
    cache_verify(CacheVerifyConfig(cache=cache))
    for folder in ("shards", "index"):
        names = storage.list_names(storage.join(cache, folder))
        local = {name: (tmp_path / "c" / folder / name).read_bytes() for name in names}
        assert local == {name: storage.read_bytes(storage.join(cache, folder, name)) for name in names}
        assert len(names) == sum(1 for _ in (tmp_path / "c" / folder).iterdir()) > 1


def test_of_many_writers_at_most_one_creates_an_object(server):
    uri = server.uri("bucket/claims/plan.parquet")

    def create(number: int) -> int | None:
        try:
            storage.write_bytes(uri, f"{number}".encode(), exclusive=True)
        except FileExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]
    if not winners:  # each saw another's claim
        winners = [number for number in (create(8),) if number is not None]
    assert [f"{number}".encode() for number in winners] == [storage.read_bytes(uri)]
    assert create(9) is None and storage.list_names(server.uri("bucket/claims")) == ["plan.parquet"]


def test_claim_of_a_killed_writer_counts_for_a_while_only(server, monkeypatch):
    storage.write_bytes(server.uri("bucket/old/.tmp-claim-x-0"), b"claimed")
    uri = server.uri("bucket/old/x")
    with pytest.raises(FileExistsError, match="about to be"):
        storage.write_bytes(uri, b"1", exclusive=True)
    monkeypatch.setattr("pipelines.storage.files.CLAIM_SECONDS", 0.0)
    storage.write_bytes(uri, b"1", exclusive=True)
    assert storage.read_bytes(uri) == b"1"


def test_upload_that_fails_leaves_the_old_object(server):
    uri = server.uri("bucket/object")
    storage.write_bytes(uri, b"old")
    with server.gate.failing("reset"), pytest.raises(OSError, match="object"):
        storage.write_bytes(uri, bytes(1_000_000))
    assert storage.read_bytes(uri) == b"old"
