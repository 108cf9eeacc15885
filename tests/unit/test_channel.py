"""Frames between HTTP processes and workers."""

import socket
import stat
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from serving.channel import Decoder, Frame, Hello, Kind, SocketFolder, listen_at, pack
from serving.errors import BrokenChannel, SocketFolderUnusable

FRAMES = st.lists(
    st.builds(Frame, st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.binary(max_size=64)), min_size=1, max_size=12
)


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


@given(FRAMES, st.lists(st.integers(0, 2**16), max_size=20))
def test_frames_survive_any_split(frames: list[Frame], cuts: list[int]) -> None:
    """A prediction's bytes would be read as another's whenever the kernel delivers them in other pieces."""
    decoder = Decoder()
    pieces = _pieces(b"".join(pack(*astuple(frame)) for frame in frames), cuts)
    assert [frame for piece in pieces for frame in decoder.feed(piece)] == frames


@given(FRAMES)
def test_frames_survive_byte_by_byte(frames: list[Frame]) -> None:
    """A slow or busy machine delivers single bytes; requests would be lost there only."""
    decoder = Decoder()
    data = b"".join(pack(*astuple(frame)) for frame in frames)
    assert [frame for at in range(len(data)) for frame in decoder.feed(data[at : at + 1])] == frames


@given(st.integers(0, 2**32 - 1).filter(lambda length: not 16 <= length <= 1024))
def test_an_impossible_length_is_refused_with_its_header(length: int) -> None:
    """A damaged stream would fill the memory while waiting for four gigabytes that never come."""
    header = struct.pack("<IIQ", length, Kind.PING, 1)
    decoder = Decoder(max_frame=1024)
    assert decoder.feed(header[:15]) == []
    with pytest.raises(BrokenChannel, match=str(length)):
        decoder.feed(header[15:])


def test_the_longest_frame_passes_and_one_byte_more_does_not() -> None:
    """A request just under the limit would be refused, or one over it let in."""
    assert Decoder(max_frame=32).feed(pack(Kind.PONG, 7, b"x" * 16)) == [Frame(Kind.PONG, 7, b"x" * 16)]
    with pytest.raises(BrokenChannel):
        Decoder(max_frame=32).feed(pack(Kind.PONG, 7, b"x" * 17))


def test_an_unknown_kind_is_refused() -> None:
    """Two versions that do not understand each other would misread frames in silence."""
    with pytest.raises(BrokenChannel, match="kind 99"):
        Decoder().feed(struct.pack("<IIQ", 16, 99, 0))


def test_a_worker_says_who_it_is() -> None:
    """Status would show the wrong process for a worker."""
    hello = Hello(pid=4_000_000, worker=3, generation=12)
    (frame,) = Decoder().feed(hello.pack())
    assert (frame.kind, Hello.unpack(frame.payload)) == (Kind.HELLO, hello)
    with pytest.raises(BrokenChannel):
        Hello.unpack(frame.payload[:-1])


def test_sockets_lie_in_the_data_folder_where_its_path_is_short(tmp_path: Path) -> None:
    """Other users of the machine could talk to the workers, or a killed server's sockets would pile up."""
    preferred = Path("/tmp") / f"s{tmp_path.stat().st_ino}" / "run"
    folder = SocketFolder(preferred, 8000)
    folder.open()
    try:
        assert folder.path == preferred
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        ours, foreign = Path(folder.address(0)), Path(SocketFolder(preferred, 8001).address(0))
        ours.touch()
        foreign.touch()
        folder.open()
        assert not ours.exists()
        assert foreign.exists()
    finally:
        foreign.unlink()
        folder.close()
        preferred.rmdir()
        preferred.parent.rmdir()


def test_a_deep_data_folder_gets_a_short_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server could not start where the data folder's path is longer than a unix socket's may be."""
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    deep = tmp_path / ("d" * 100) / "run"
    folder, again, other = SocketFolder(deep, 8000), SocketFolder(deep, 8000), SocketFolder(deep / "x", 8000)
    assert folder.path.parent == Path("/tmp")
    assert folder.path == again.path != other.path
    folder.open()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.close()
    assert not folder.path.exists()


def test_a_replacement_that_somebody_else_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user could prepare the name in the shared temporary folder and listen in place of the workers."""
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    folder = SocketFolder(tmp_path / ("d" * 100), 8000)
    folder.path.symlink_to(tmp_path)
    try:
        with pytest.raises(SocketFolderUnusable, match="belongs to somebody else"):
            folder.open()
    finally:
        folder.path.unlink()


def test_no_room_anywhere_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would die with a traceback about a path, naming no setting."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("t" * 100)))
    with pytest.raises(SocketFolderUnusable, match="SWITCHYARD_DATA_FOLDER"):
        SocketFolder(tmp_path / ("d" * 100), 8000)


def test_names_that_killed_processes_left_beside_an_address_go(tmp_path: Path) -> None:
    """Each kill at the wrong moment would leave a socket behind, until the whole data plane is started anew."""
    with subprocess.Popen([sys.executable, "-c", "pass"]) as gone, subprocess.Popen(["sleep", "60"]) as alive:
        gone.wait()
        try:
            for pid in (gone.pid, alive.pid):
                (tmp_path / f"worker-8000-1.{pid}").touch()
            (tmp_path / f"worker-8000-11.{gone.pid}").touch()  # another worker's
            with listen_at(str(tmp_path / "worker-8000-1")) as listener:
                left = {each.name for each in tmp_path.iterdir()}
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(tmp_path / "worker-8000-1"))
                    listener.setblocking(True)
                    listener.accept()[0].close()
        finally:
            alive.kill()
    assert left == {"worker-8000-1", f"worker-8000-1.{alive.pid}", f"worker-8000-11.{gone.pid}"}
