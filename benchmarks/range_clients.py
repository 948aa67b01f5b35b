"""What a clip's bytes cost over HTTP: pyarrow's S3 client, obstore, and the standard library, same ranges, same run.

`python -m benchmarks.range_clients [rounds]` reads ranges of 6.1 MB, a clip of 30 s in float16, from nginx on this
machine into memory that was used before. It needs nginx and obstore (`make bench` installs the latter).
"""

import http.client
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import obstore
import pyarrow as pa
from obstore.store import S3Store
from pyarrow import fs

from benchmarks.nginx_server import nginx_server
from benchmarks.reader import KEYS

NBYTES, PLACES, READS = 6_144_000, 4, 64


def main(rounds: int) -> None:
    """Read by turns and print the medians."""
    os.environ |= KEYS
    memory = memoryview(bytearray(NBYTES))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "b").mkdir()
        (folder / "b" / "x").write_bytes(os.urandom(NBYTES * PLACES))
        with nginx_server(folder) as server:
            address = f"127.0.0.1:{server.port}"
            arrow = fs.S3FileSystem(endpoint_override=address, scheme="http", region="us-east-1")
            file = arrow.open_input_file("b/x")
            store = S3Store(
                "b",
                endpoint=f"http://{address}",
                client_options={"allow_http": True},
                region="us-east-1",
                skip_signature=True,
                virtual_hosted_style_request=False,
            )
            connection = http.client.HTTPConnection(address)

            def by_arrow(start: int) -> None:
                file.seek(start)
                file.readinto(memory)

            def by_obstore(start: int) -> None:
                memory[:] = memoryview(obstore.get_range(store, "x", start=start, length=NBYTES))

            def by_library(start: int) -> None:
                connection.request("GET", "/b/x", headers={"Range": f"bytes={start}-{start + NBYTES - 1}"})
                response, filled = connection.getresponse(), 0
                while filled < NBYTES:
                    filled += response.readinto(memory[filled:])

            ways = {"pyarrow": by_arrow, "obstore": by_obstore, "http.client": by_library}
            times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(rounds + 1):
                for way, read in ways.items():
                    times[way].append(timed(read))
    print(f"pyarrow {pa.__version__}, obstore {obstore.__version__}\n\n| | ms | processor ms |\n|---|---|---|")
    for way, pairs in times.items():
        clock, processor = zip(*pairs[1:], strict=True)  # the first round connects
        print(f"| {way} | {statistics.median(clock):.2f} | {statistics.median(processor):.2f} |")


def timed(read: Callable[[int], None]) -> tuple[float, float]:
    """Return milliseconds of a read by the clock and by the processor."""
    start, processor = time.perf_counter(), time.process_time()
    for number in range(READS):
        read(number % PLACES * NBYTES)
    return 1000 * (time.perf_counter() - start) / READS, 1000 * (time.process_time() - processor) / READS


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
