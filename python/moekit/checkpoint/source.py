"""Reading a file that nobody vouches for: regular files only, by position, never past the end.

Nothing here maps a file into memory: a mapped file that shrinks kills the process with SIGBUS,
while a short `pread` is an exception.
"""

import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FileError

Array = npt.NDArray[Any]

# One system call asks for no more than this, so that Ctrl-C is seen within milliseconds.
READ_CHUNK_BYTES = 32 << 20
# Parts of lines that are so close are read together with what lies between them, so much at once.
_CLOSE_BYTES = 16 << 10
_BITE_BYTES = 512 << 10
# The vector loads of the widest ISA; also a cache line.
ALIGNMENT = 64

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)


def quoted(text: str) -> str:
    """A name out of a file as it may stand in a message: escaped, and cut when it is long."""
    return ascii(text) if len(text) <= 120 else ascii(text[:100]) + f"... ({len(text)} characters)"


def aligned_empty(nbytes: int) -> Array:
    """Uninitialised uint8 [nbytes] that starts on a 64-byte boundary and owns its memory."""
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    skip = -room.ctypes.data % ALIGNMENT
    return room[skip : skip + nbytes]


def inside(path: str, folder: str) -> bool:
    """True if `path` lies below `folder`; both are real paths, without links."""
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def allowed_folders(directory: str) -> tuple[str, ...]:
    """The folders that links of a checkpoint directory may lead into.

    They are the directory itself and, in a snapshot of the Hugging Face cache
    (`models--x/snapshots/<revision>`, whose files are links), the `blobs` folder beside it.
    """
    real = os.path.realpath(directory)
    snapshots = os.path.dirname(real)
    if os.path.basename(snapshots) == "snapshots":
        return real, os.path.join(os.path.dirname(snapshots), "blobs")
    return (real,)


def open_regular(path: str, kind: str, folders: Sequence[str] | None = None) -> tuple[int, int]:
    """Open `path` for reading: (file descriptor, size in bytes).

    `folders` are the real folders that a link may lead into; None follows links anywhere, which
    is for a path that the user named. Raises FileError for what is missing, outside or not a
    regular file.
    """
    try:
        real = os.path.realpath(path)
        if folders is not None and not any(inside(real, folder) for folder in folders):
            raise FileError(
                f"[{kind}] {path}: leads to {real}; "
                "files of a checkpoint must stay inside of its directory"
            )
        # Looking before opening: opening alone can act on some devices or wait on a FIFO.
        _require_regular(os.stat(real), path, kind)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
        fd = os.open(real, flags)
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FileError(f"[{kind}] {ascii(path)[1:-1]}: cannot be opened: {reason}") from error
    try:
        status = os.fstat(fd)
        _require_regular(status, path, kind)
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


def _require_regular(status: os.stat_result, path: str, kind: str) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    found = next((text for test, text in _KINDS if test(status.st_mode)), "not a regular file")
    raise FileError(f"[{kind}] {path}: is {found}; a regular file is required")


class SourceFile:
    """A regular file open for reading at any position; its size is the one at opening.

    Reading is safe from several threads; closing while another thread reads is not.
    """

    def __init__(self, path: str, kind: str, folders: Sequence[str] | None = None) -> None:
        self.path = path
        self.kind = kind
        self.bytes_read = 0  # for a progress bar
        self._fd, self.size = open_regular(path, kind, folders)

    def error(self, problem: str) -> FileError:
        """The exception that says `problem` about this file."""
        return FileError(f"[{self.kind}] {self.path}: {problem}")

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` (bytes, writable) from `offset`; FileError if the file has become short."""
        if self._fd < 0:
            raise ValueError(f"[{self.kind}] {self.path}: is closed; an open checkpoint is needed")
        done, wanted = 0, len(target)
        while done < wanted:
            part = target[done : done + READ_CHUNK_BYTES]
            try:
                count = os.preadv(self._fd, [part], offset + done)
            except OSError as error:
                where = f"at byte {offset + done}"
                raise self.error(f"reading {where} failed: {error.strerror}") from error
            if count == 0:
                raise self.error(
                    f"the file shrank: it ends at {offset + done}, bytes up to {offset + wanted} "
                    f"are wanted and it had {self.size} when it was opened"
                )
            done += count
        self.bytes_read += wanted

    def read_strided(self, offset: int, stride: int, target: Array) -> None:
        """Fill `target`, uint8 [runs, width], with runs of bytes that begin every `stride`."""
        runs, width = target.shape
        if width == stride:
            self.read_into(offset, target.reshape(-1).data)
            return
        # A call costs as much as copying what lies between two runs that are close.
        step = max(1, _BITE_BYTES // stride) if stride - width < _CLOSE_BYTES else 1
        bite = np.empty((step, stride), np.uint8)
        for first in range(0, runs, step):
            count = min(step, runs - first)
            # The last run may end with the file.
            wanted = bite.reshape(-1)[: (count - 1) * stride + width]
            self.read_into(offset + first * stride, wanted.data)
            target[first : first + count] = bite[:count, :width]

    def read(self, offset: int, nbytes: int) -> bytearray:
        """`nbytes` bytes from `offset`; the caller has checked both against `size`."""
        room = bytearray(nbytes)
        self.read_into(offset, memoryview(room))
        return room

    def __del__(self) -> None:
        # Paged models keep their file open for as long as someone may read from it.
        self.close()

    def close(self) -> None:
        """Give the file descriptor back; closing twice is allowed."""
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)
