"""A local S3 server, and before it a gate that lets requests fail, drop or wait when a test says so."""

import contextlib
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow.fs as fs

Fault = Literal["slow down", "reset", "stall"]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}
SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 89\r\nConnection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>\r\n"
)
STALL_SECONDS = 2.0
SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
port, fd = map(int, sys.argv[1:])
make_server("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), fd=fd).serve_forever()
"""
"""One request at a time: moto 5.2 hashes an object without its lock, and a GET beside that reads other bytes."""


class Gate:
    """Passes bytes between clients and the server; while a fault is set, connections meet it instead.

    slow down: a new request is answered with 503; reset: connections are cut, open ones too; stall: bytes wait.
    """

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.fault: Fault | None = None
        self.met = 0
        """Connections that met a fault."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Let connections meet a fault for a while."""
        self.fault = fault
        if fault == "reset":
            for connection in list(self._open):
                self.met += 1
                _reset(connection)
        try:
            yield
        finally:
            self.fault = None

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.fault in ("slow down", "reset"):
            self.met += 1
            with contextlib.suppress(OSError):
                if self.fault == "slow down":
                    client.recv(65_536)
                    client.sendall(SLOW_DOWN)
                else:
                    _reset(client)
            client.close()
            return
        with contextlib.suppress(OSError):
            client.recv(1, socket.MSG_PEEK)  # the server takes one connection at a time: none that says nothing
        server = socket.create_connection(("127.0.0.1", self.server_port))
        self._open |= {client, server}
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        self._open -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(262_144):
                if self.fault == "stall":
                    self.met += 1
                    time.sleep(random.uniform(0, STALL_SECONDS))
                elif self.fault == "slow down" and data.startswith((b"PUT ", b"GET ", b"POST ", b"HEAD ", b"DELETE ")):
                    self.met += 1
                    source.sendall(SLOW_DOWN)
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    """Cut a connection without a goodbye."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


class S3Server:
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def uri(self, path: str) -> str:
        return f"s3://{path}?endpoint_override=127.0.0.1:{self.gate.port}&scheme=http&region=us-east-1"

    def upload(self, folder: Path, path: str) -> str:
        """Copy a local folder into the store and return its URI."""
        target, inner = fs.FileSystem.from_uri(self.uri(path))
        fs.copy_files(str(folder), inner, source_filesystem=fs.LocalFileSystem(), destination_filesystem=target)
        return self.uri(path)


@contextlib.contextmanager
def s3_server(bucket: str) -> Iterator[S3Server]:
    """Run a server with one empty bucket, for clients with `CREDENTIALS` in their environment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:  # handed on: a port that is free now is another's soon
        port, fd = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-c", SERVER, str(port), str(fd)]
        process = subprocess.Popen(command, pass_fds=[fd], stderr=subprocess.DEVNULL)
    gate = Gate(port)
    try:
        _make_bucket(port, bucket)
        yield S3Server(gate)
    finally:
        gate.close()
        process.kill()
        process.wait()


def _make_bucket(port: int, bucket: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
