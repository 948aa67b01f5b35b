"""Covers encoders.sound.clips."""

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.audio import AudioError, Segment
from encoders.sound import recordings
from encoders.sound.clips import load_clip
from encoders.sound.recordings import open_local, open_recording, split_member
from encoders.sound.sound_file import probe_seconds
from tests.encoders.sound.builders import KINDS, rejected, sweep, write


def make_tar(path: Path, members: dict[str, bytes], tar_format: int = tarfile.DEFAULT_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


class ObjectFile(io.RawIOBase):
    """A file as an object store gives it: unbuffered, so that every read is a request; `log` has their sizes."""

    log: list[int] = []  # noqa: RUF012 - shared on purpose

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed with this one

    def readinto(self, buffer: memoryview) -> int:
        count = self._file.readinto(buffer)
        self.log.append(count)
        return count

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@pytest.fixture
def requests() -> list[int]:
    """Return the sizes of all reads from object stores that follow; no archive is known yet."""
    ObjectFile.log.clear()
    recordings._tar_index.cache_clear()
    return ObjectFile.log


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one recording of each kind, and `a.tar` with all of them."""
    folder = tmp_path_factory.mktemp("corpus")
    for kind in KINDS:
        write(folder / f"a.{kind}", sweep(5))
    make_tar(folder / "a.tar", {f"x/{path.name}": path.read_bytes() for path in sorted(folder.glob("a.*"))})
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_member_of_a_tar_is_heard_like_the_file(corpus: Path, kind: str) -> None:
    file, member = f"{corpus}/a.{kind}", f"{corpus}/a.tar!x/a.{kind}"
    assert torch.equal(load_clip([Segment(member)]), load_clip([Segment(file)]))
    assert torch.equal(load_clip([Segment(member, 2.5, 1.5)]), load_clip([Segment(file, 2.5, 1.5)]))
    assert probe_seconds(member) == 5.0


def test_member_is_a_file_of_its_own_to_seek_in(corpus: Path) -> None:
    data = (corpus / "a.flac").read_bytes()
    with open_local(f"{corpus}/a.tar!x/a.flac") as file:
        assert file.read() == data
        assert file.read(1) == b""
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert file.read(100) == data[-10:]
        file.seek(1_000)
        assert file.read(50_000) == data[1_000:51_000]
    assert file.closed


def test_archive_is_scanned_once_whoever_asks(corpus: Path, requests: list[int]) -> None:
    members = [f"{corpus}/a.tar!x/a.{kind}" for kind in KINDS] * 8
    open_recording(members[0], ObjectFile).close()
    scan = len(requests)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda member: open_recording(member, ObjectFile).close(), members))
    assert scan == len(requests)
    recordings._tar_index.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda member: open_recording(member, ObjectFile).close(), members))
    assert len(requests) == 2 * scan


def test_scan_of_a_remote_archive_reads_ahead(tmp_path: Path, requests: list[int]) -> None:
    tar = make_tar(tmp_path / "a.tar", {f"{number}.wav": bytes(1_500) for number in range(2_000)})
    open_recording(f"{tar}!1999.wav", ObjectFile).close()
    assert len(requests) < 10
    assert sum(requests) < 1.1 * tar.stat().st_size


def test_segment_of_a_member_reads_neither_the_archive_nor_the_whole_member(
    tmp_path: Path, requests: list[int]
) -> None:
    recording = Path(write(tmp_path / "a.wav", sweep(200)))
    noise = np.random.default_rng(0).bytes(3_000_000)
    tar = make_tar(tmp_path / "a.tar", {"before": noise, "a.wav": recording.read_bytes(), "after": noise})
    open_recording(f"{tar}!a.wav", ObjectFile).close()
    requests.clear()
    clip = load_clip([Segment(f"{tar}!a.wav", 150, 2)], open_file=lambda name: open_recording(name, ObjectFile))
    assert torch.equal(clip, load_clip([Segment(str(recording), 150, 2)]))
    assert sum(requests) < 600_000


def test_members_are_found_however_their_names_are_written(tmp_path: Path) -> None:
    names = ["./dot.wav", "deep/er//x.wav", "ü ß/日本.wav", "n" * 90 + "/" + "m" * 120 + ".wav", "two words!.wav"]
    for tar_format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        tar = make_tar(tmp_path / f"{tar_format}.tar", {name: name.encode() for name in names}, tar_format)
        for name in [*names, "dot.wav", "deep/er/x.wav"]:
            with open_local(f"{tar}!{name}") as file:
                assert file.read().decode().endswith(name.removeprefix("./").rpartition("/")[2])


def test_of_two_members_with_one_name_the_last_counts(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", {"x": b"old", "./x": b"new"})
    with open_local(f"{tar}!x") as file:
        assert file.read() == b"new"


def test_replaced_archive_is_scanned_anew(tmp_path: Path) -> None:
    for data in (b"old!", b"new!"):
        make_tar(tmp_path / "new.tar", {f"pad-{data.decode()}": bytes(100 * data[0]), "x": data})
        os.utime(tmp_path / "new.tar", ns=(data[0], data[0]))
        (tmp_path / "new.tar").replace(tmp_path / "a.tar")
        with open_local(f"{tmp_path}/a.tar!x") as file:
            assert file.read() == data


@pytest.mark.parametrize("name", ["../up.wav", "/etc/absolute.wav", "a/../../../up.wav", "c:\\x.wav", "a\nb.wav"])
def test_hostile_names_are_keys_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    wav = Path(write(tmp_path / "a.wav", sweep(1.5))).read_bytes()
    (tmp_path / "in").mkdir()
    tar = make_tar(tmp_path / "in" / "a.tar", {name: wav})
    (tmp_path / "a.wav").unlink()
    assert len(load_clip([Segment(f"{tar}!{name}")])) == 24_000
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["in", "a.tar"]
    assert rejected(f"{tar}!../../etc/passwd").reason == "no such member"


def test_file_whose_own_name_holds_the_mark_is_opened(tmp_path: Path) -> None:
    for name in ("loud!.wav", "take.tar!1.wav", "!.wav", "a.tar!"):
        write(tmp_path / name, sweep(1.5), kind="wav")
        assert len(load_clip([Segment(f"{tmp_path}/{name}")])) == 24_000


def test_member_comes_before_the_query_of_a_uri() -> None:
    assert split_member("s3://b/t/a.tar!x/y.flac?region=z") == ("s3://b/t/a.tar?region=z", "x/y.flac")
    assert split_member("/t/a.tar!why?.flac") == ("/t/a.tar", "why?.flac")
    assert split_member("A.TAR!x!y.tar!z") == ("A.TAR", "x!y.tar!z")
    for plain in ("a!b.wav", "a.tar", "a.tar!", "s3://b/a.wav?x=a.tar!y", "startar!x", ".tar!x"):
        assert split_member(plain) == (plain, "")


def special_members(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("pipe")
        member.type = tarfile.FIFOTYPE
        tar.addfile(member)
    return path


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("folder", "the member is a folder"),
        ("soft", "the member is a link"),
        ("hard", "the member is a link"),
        ("pipe", "the member is no regular file"),
        ("none.wav", "no such member"),
    ],
)
def test_what_is_no_file_in_an_archive_is_rejected(tmp_path: Path, member: str, reason: str) -> None:
    error = rejected(f"{special_members(tmp_path / 'a.tar')}!{member}")
    assert (error.stage, error.reason) == ("open", reason)


@pytest.mark.parametrize("ending", ["tar.gz", "tgz", "tar.bz2", "tar.xz", "tar"])
def test_compressed_archive_is_rejected_as_such(tmp_path: Path, ending: str) -> None:
    wav = Path(write(tmp_path / "a.wav", sweep(1)))
    compression = {"tar.bz2": "bz2", "tar.xz": "xz"}.get(ending, "gz")
    with tarfile.open(tmp_path / f"a.{ending}", f"w:{compression}") as tar:
        tar.add(wav, "a.wav")
    assert "compressed" in rejected(f"{tmp_path}/a.{ending}!a.wav").reason


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, bytes(range(256)) * 20])
def test_what_is_no_archive_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert "not a tar" in rejected(f"{tmp_path}/a.tar!a.wav").reason


def test_missing_archive_and_a_folder_for_one_are_rejected(tmp_path: Path) -> None:
    assert rejected(f"{tmp_path}/none.tar!a.wav").reason == "no such file"
    (tmp_path / "folder.tar").mkdir()
    assert rejected(f"{tmp_path}/folder.tar!a.wav").reason == "is a folder"


def test_cut_archive_gives_whole_clips_or_none(tmp_path: Path) -> None:
    names = ["0.wav", "1.wav", "2.wav"]
    wave = Path(write(tmp_path / "a.wav", sweep(1.5))).read_bytes()
    data = make_tar(tmp_path / "a.tar", dict.fromkeys(names, wave)).read_bytes()
    member_bytes = 512 + -(-len(wave) // 512) * 512
    reasons = set()
    for cut in [0, 100, 512, 513, *range(700, 3 * member_bytes, 7_333), 3 * member_bytes, len(data) - 1]:
        tar = tmp_path / f"{cut}.tar"
        tar.write_bytes(data[:cut])
        for number, name in enumerate(names):
            if 512 + number * member_bytes + len(wave) <= cut:
                assert len(load_clip([Segment(f"{tar}!{name}")])) == 24_000
            else:
                reasons.add(rejected(f"{tar}!{name}").reason.partition(" (")[0].partition(" at byte")[0])
    assert {reason for reason in reasons if " holds " not in reason} == {
        "the archive is not a tar",
        "no such member; the archive is cut off or damaged",
    }
    assert rejected(f"{tmp_path}/700.tar!0.wav").reason == (
        f"the archive is cut off: it holds 188 of the member's {len(wave)} bytes"
    )


def test_damaged_header_hides_what_comes_after_it_and_says_so(tmp_path: Path) -> None:
    wave = Path(write(tmp_path / "a.wav", sweep(1.5))).read_bytes()
    tar = make_tar(tmp_path / "a.tar", {"0.wav": wave, "1.wav": wave})
    data = bytearray(tar.read_bytes())
    header = 512 + -(-len(wave) // 512) * 512
    data[header + 3] ^= 1
    tar.write_bytes(data)
    assert len(load_clip([Segment(f"{tar}!0.wav")])) == 24_000
    assert rejected(f"{tar}!1.wav").reason == f"no such member; the archive is cut off or damaged at byte {header}"


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("nbytes", [-1, -512, -1024, -(2**62), 2**62])
def test_impossible_sizes_in_headers_neither_hang_nor_crash(tmp_path: Path, kind: bytes, nbytes: int) -> None:
    member = tarfile.TarInfo("evil.wav")
    member.type, member.size = kind, nbytes
    blocks = [tarfile.TarInfo("empty.wav").tobuf(tarfile.GNU_FORMAT), member.tobuf(tarfile.GNU_FORMAT)]
    (tmp_path / "a.tar").write_bytes(b"".join(blocks) + bytes(20_480))
    for name in ("evil.wav", "none.wav"):
        assert rejected(f"{tmp_path}/a.tar!{name}").stage in ("open", "decode")


def test_storage_that_fails_during_a_scan_is_no_fault_of_the_recording(corpus: Path) -> None:
    class Broken(ObjectFile):
        def readinto(self, buffer: memoryview) -> int:
            raise OSError("connection lost")

    recordings._tar_index.cache_clear()
    with pytest.raises(OSError, match="connection lost"):
        load_clip([Segment(f"{corpus}/a.tar!x/a.wav")], open_file=lambda name: open_recording(name, Broken))
    clip = load_clip([Segment(f"{corpus}/a.tar!x/a.wav")], open_file=lambda name: open_recording(name, ObjectFile))
    assert len(clip) == 80_000


def test_pipes_and_devices_are_rejected_and_nobody_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (f"{tmp_path}/pipe.wav", "/dev/zero", "/dev/null"):
        assert "a pipe or a device" in rejected(path).reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.wav", "no such file"),
        ("folder", "is a folder"),
        ("loop.wav", "its symbolic links lead in a circle"),
        ("dangling.wav", "no such file"),
        ("a.wav/b.wav", "no such file"),
        ("x" * 300, "its name is too long"),
        ("nul\0.wav", "no file can have this name (embedded null byte)"),
        ("", "is a folder"),
    ],
)
def test_what_cannot_be_opened_is_named_with_its_reason(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "dangling.wav").symlink_to("nowhere.wav")
    write(tmp_path / "a.wav", sweep(1))
    error = rejected(f"{tmp_path}/{name}")
    assert (error.stage, error.reason) == ("open", reason)


def test_name_that_is_not_unicode_is_opened(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    write(tmp_path / "a.wav", sweep(1.5))
    Path(path).write_bytes((tmp_path / "a.wav").read_bytes())
    assert len(load_clip([Segment(path)])) == 24_000
    assert rejected(f"{path}x").reason == "no such file"
    assert rejected(f"{tmp_path}/\ud800.wav").reason.startswith("no file can have this name")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_rejected(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.wav", sweep(1)))
    path.chmod(0)
    assert rejected(str(path)).reason == "permission denied"


def test_lack_of_permission_is_a_fault_of_the_recording_and_lack_of_descriptors_is_not() -> None:
    def forbidden(name: str) -> io.BytesIO:
        raise PermissionError(13, "Permission denied", name)

    def exhausted(name: str) -> io.BytesIO:
        raise OSError(24, "Too many open files", name)

    with pytest.raises(AudioError, match=r"a\.wav: open: permission denied"):
        load_clip([Segment("a.wav")], open_file=forbidden)
    with pytest.raises(OSError, match="Too many open files"):
        load_clip([Segment("a.wav")], open_file=exhausted)
