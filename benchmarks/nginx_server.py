"""The reading half of S3 on 127.0.0.1 by nginx, which is no Python: listings alone are `range_server`'s."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.range_server import RangeServer, range_server

CONFIG = """
daemon off; pid {run}/nginx.pid; error_log stderr; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log {run}/access.log; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {run}/1; proxy_temp_path {run}/2; fastcgi_temp_path {run}/3; uwsgi_temp_path {run}/4;
  scgi_temp_path {run}/5; default_type application/octet-stream;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      if ($arg_list-type) {{ proxy_pass http://127.0.0.1:{listings}; }}
      root {folder};
    }}
  }}
}}
"""
START_SECONDS = 10.0
PATH = "/usr/local/sbin:/usr/sbin:/usr/local/bin:/usr/bin"


@dataclass(frozen=True)
class NginxServer(RangeServer):
    """Also counts what it was asked for."""

    access_log: Path

    def take_requests(self) -> list[str]:
        """Return the lines of the access log since the last call."""
        lines = self.access_log.read_text().splitlines()
        self.access_log.write_text("")
        return lines


def has_nginx() -> bool:
    """Tell whether nginx is installed; users' search paths often lack its folder."""
    return shutil.which("nginx", path=PATH) is not None


@contextmanager
def nginx_server(folder: Path) -> Iterator[NginxServer]:
    """Serve a folder whose first folders are the buckets."""
    nginx = shutil.which("nginx", path=PATH)
    assert nginx, "apt-get install nginx-light"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as run, range_server(folder) as listings:
        config = Path(run) / "nginx.conf"
        config.write_text(CONFIG.format(run=run, port=port, listings=listings.port, folder=folder))
        with subprocess.Popen([nginx, "-c", str(config), "-g", "user root;"]) as process:
            try:
                _wait_for(port)
                yield NginxServer(process, port, Path(run) / "access.log")
            finally:
                process.terminate()


def _wait_for(port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < end, "nginx does not start"
            time.sleep(0.05)
