"""One job at a time writes to a folder: while it does, its hold stands there, and that of a dead job is let go.

A hold is a small file, `<folder>/held-by-….json`. A job writes its own, then looks for others. If one is settled it
gives up; if another also only asks, both take theirs back and ask again after a random time; if there is none, it
settles. Of two that ask at once the later one sees the earlier one's file, as listings are consistent, on object stores
too. So of any number of jobs that start together one goes on, and no store has to refuse a write.

A job of this machine is dead when its process is gone. One of another machine is dead when its hold was not renewed
while this job watched for `LEASE_SECONDS`; clocks are not compared.
"""

import json
import logging
import os
import random
import shlex
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread, main_thread

from pipelines.errors import JobIncompleteError, UserError
from pipelines.storage.files import delete_file, file_exists, list_names, read_json, write_bytes
from pipelines.storage.uris import is_local, join, resolve

logger = logging.getLogger(__name__)

PREFIX, SUFFIX = "held-by-", ".json"
RENEW_SECONDS = 10.0
LEASE_SECONDS = 60.0
LOOK_SECONDS = 1.0
ASK_AGAIN_SECONDS = (0.05, 0.5)
COMMAND_CHARACTERS = 200
HOLD_NBYTES = 4_096
"""Holds are padded to one length: pyarrow asks an object store for a length, then for so many bytes, and a hold may be
written anew in between."""


class HeldError(UserError):
    """Another job is at work in the folder."""


@dataclass(frozen=True)
class _Hold:
    """What stands in a hold's file."""

    name: str
    command: str
    host: str
    process: int
    machine: str
    """This boot of the machine, and this namespace of processes; empty where the system does not tell."""
    started: str
    """When the process started, as the kernel counts it: a number that is used again is another process."""
    since: str
    renewals: int = 0
    is_settled: bool = False

    def __str__(self) -> str:
        since = self.since.replace("T", " ").replace("+00:00", " UTC")
        return f"process {self.process} on {self.host}, since {since}: {self.command[:COMMAND_CHARACTERS]}"


@dataclass(frozen=True)
class Holder:
    """A job that holds a folder, in words; `is_gone` where its process is known to have ended without letting go."""

    text: str
    is_gone: bool

    def __str__(self) -> str:
        return f"{self.text} (that process is gone)" if self.is_gone else self.text


def held_by(folder: str) -> list[Holder]:
    """Return who holds a folder; changes nothing."""
    holds = [hold for name in _names(folder) if (hold := _read(folder, name))]
    return [Holder(str(hold), _is_alive(hold) is False) for hold in holds]


@contextmanager
def held(folder: str) -> Iterator[None]:
    """Be the only job that writes to a folder; a hold of this process's own counts like any other.

    Raises:
        HeldError: If another job holds it, naming that job.
        JobIncompleteError: If another job took it over meanwhile, as nothing was heard of this one.
    """
    try:
        hold, dead = _acquire(folder)
        renewal = _Renewal(folder, hold, dead)
        renewal.start()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if renewal.lost:
                raise JobIncompleteError(f"{folder}: {renewal.lost}") from None
            raise
        finally:
            renewal.end()
    finally:
        if is_local(folder):
            with suppress(OSError):  # not empty, most often
                Path(resolve(folder)[1]).rmdir()


def _acquire(folder: str) -> tuple[_Hold, Sequence[str]]:
    """Return the hold that this job has settled, and the names of dead jobs' holds."""
    while True:
        hold = _own_hold()  # of a new name each time: one that was taken for dead never comes back
        _write(folder, hold)
        try:
            living = {name: _living(folder, name, hold) for name in _names(folder) if name != hold.name}
            asking = [other for other in living.values() if other]
            if not asking:
                hold = replace(hold, is_settled=True)
                _write(folder, hold)
                dead = list(living)
                for name in dead:
                    _delete(folder, name)
                return hold, dead
            for other in asking:
                if other.is_settled:
                    raise HeldError(f"{folder}: another job is at work there ({other}); let it end or stop it")
        except BaseException:
            _delete(folder, hold.name)
            raise
        _delete(folder, hold.name)
        time.sleep(random.uniform(*ASK_AGAIN_SECONDS))


def _living(folder: str, name: str, own: _Hold) -> _Hold | None:
    """Return another hold if its job lives, after watching for a while where nothing else tells."""
    hold = _read(folder, name)
    if hold is None:
        return None
    alive = _is_alive(hold)
    if alive is not None:
        return hold if alive else None
    logger.warning("%s: held by %s; watching for %.0f s whether that job lives", folder, hold, LEASE_SECONDS)
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        now = _read(folder, name)
        if now != hold:
            return now
        own = replace(own, renewals=own.renewals + 1)
        _write(folder, own)
    return None


class _Renewal(Thread):
    """Renews a hold until its job ends, and stops the job where another one has taken the folder over."""

    def __init__(self, folder: str, hold: _Hold, dead: Sequence[str]) -> None:
        super().__init__(name="hold", daemon=True)
        self.lost = ""
        self._folder, self._hold, self._dead = folder, hold, dead
        self._over = Event()

    def run(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                names = _names(self._folder)
                if self._hold.name not in names:
                    holders = (
                        ", ".join(str(_read(self._folder, name)) for name in names) or "a job that has ended since"
                    )
                    self.lost = f"nothing was heard of this job for a while, and another took over: {holders}"
                    _interrupt_main()
                    return
                self._hold = replace(self._hold, renewals=self._hold.renewals + 1)
                _write(self._folder, self._hold)
                for name in self._dead:
                    _delete(self._folder, name)  # one taken for dead may have renewed its hold just then
            except OSError as error:
                logger.warning("%s: its hold was not renewed (%s); trying again", self._folder, error)

    def end(self) -> None:
        self._over.set()
        self.join()
        try:
            _delete(self._folder, self._hold.name)
        except OSError as error:
            logger.warning("%s: its hold was not taken away (%s); it ends with this process", self._folder, error)


def _interrupt_main() -> None:
    """Stop the main thread by a signal that it handles: one started in the background ignores SIGINT."""
    is_handled = callable(signal.getsignal(signal.SIGTERM))
    signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM if is_handled else signal.SIGINT)


def _names(folder: str) -> list[str]:
    names = [name for name in list_names(folder, SUFFIX) if name.startswith(PREFIX)]
    return [name.removeprefix(PREFIX).removesuffix(SUFFIX) for name in names]


def _uri(folder: str, name: str) -> str:
    return join(folder, f"{PREFIX}{name}{SUFFIX}")


def _read(folder: str, name: str) -> _Hold | None:
    uri = _uri(folder, name)
    try:
        return _Hold(**read_json(uri))
    except OSError:
        if file_exists(uri):
            raise
        return None  # it went before it was opened or, in an object store, read


def _write(folder: str, hold: _Hold) -> None:
    data = json.dumps(asdict(hold), indent=1).encode().ljust(HOLD_NBYTES)
    try:
        write_bytes(_uri(folder, hold.name), data)
    except FileNotFoundError:  # a job that ended has just removed the folder, which was empty
        write_bytes(_uri(folder, hold.name), data)


def _delete(folder: str, name: str) -> None:
    with suppress(FileNotFoundError):
        delete_file(_uri(folder, name))


def _own_hold() -> _Hold:
    process = os.getpid()
    return _Hold(
        name=uuid.uuid4().hex,
        command=shlex.join([_program(), *sys.argv[1:]]),
        host=socket.gethostname(),
        process=process,
        machine=_machine(),
        started=_started(process) or "",
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _program() -> str:
    """Return what the job was started as; a submitted one is `python -m pipelines`."""
    name = Path(sys.argv[0]).name
    return "salmonn" if name == "__main__.py" else name


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(process: int) -> str | None:
    """Return when a process of this machine started, None if it is gone or has only its exit code left."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _is_alive(hold: _Hold) -> bool | None:
    """Say whether the process of a hold lives, None where this machine cannot tell."""
    if not hold.machine or hold.machine != _machine():
        return None
    started = _started(hold.process)
    if started is None and _is_hidden(hold.process):
        return None
    return started == hold.started


def _is_hidden(process: int) -> bool:
    """Say whether it is another user's process where /proc shows one's own alone."""
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False
