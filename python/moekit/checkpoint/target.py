"""Writing a file so that it appears under its name whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from .source import READ_CHUNK_BYTES


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, in calls short enough for Ctrl-C to be seen."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done : done + READ_CHUNK_BYTES], offset + done)


@contextmanager
def replacing(path: str) -> Iterator[int]:
    """A descriptor of a new file that takes the place of `path` if the body succeeds."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(6)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Flush the names in a folder: a new name reaches the disk with it, not with its file."""
    directory = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
