"""Every broken or hostile file is an exception with a message, in bounded memory and time.

The cases run in a process that may not grow by more than half a gigabyte nor compute for long:
what would exhaust a machine ends it instead.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import checkpoints
import gguf_converter
import hostile_files  # noqa: F401 - adds to the cases, as the next ones
import malformed_configs  # noqa: F401
import malformed_files
import malformed_gguf  # noqa: F401
import malformed_safetensors  # noqa: F401
import pytest

import moekit as mk

SECONDS = 240
BYTES = 512 << 20


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral as a directory, and as a GGUF file beside it."""
    path = tmp_path_factory.mktemp("sound")
    checkpoints.save_tokenizer(path, vocab_size=320)
    model = checkpoints.tiny_model("mixtral", 0, vocab_size=320, num_key_value_heads=3)
    checkpoints.save(model, path)
    gguf_converter.convert(path, path / "model.gguf")
    return path


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0])


def main(sound: Path, work: Path) -> None:
    """Load the broken copy of each case; prints what came of it, one JSON line each."""
    mk.load(sound)
    mk.load(sound / "model.gguf")
    now = resident_pages() * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, now + BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    for name, break_it in malformed_files.CASES.items():
        folder = work / "copy"
        shutil.copytree(sound, folder)
        outcome: dict[str, Any] = {"case": name, "kind": "", "text": ""}
        path = break_it(folder)
        try:
            mk.load(path)
        except BaseException as error:
            outcome["kind"] = type(error).__name__
            outcome["file"] = isinstance(error, ValueError)
            outcome["text"] = str(error)[:2000]
            if not isinstance(error, ValueError):
                outcome["trace"] = traceback.format_exc()[-1500:]
        print(json.dumps(outcome), flush=True)
        shutil.rmtree(folder)
        (work / "outside").unlink(missing_ok=True)


def test_every_broken_file_is_refused(sound: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(sound), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=4 * SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(malformed_files.CASES) >= 500
    for outcome in found:
        assert outcome["kind"], f"{outcome['case']}: loaded"
        assert outcome["file"], outcome
        # Whoever reads the message has to know what is meant.
        assert outcome["text"].startswith("["), outcome
        assert len(outcome["text"]) < 1500, outcome


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_a_file_that_shrinks_after_it_was_opened(sound: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(sound / name, tmp_path / name)
    with mk.checkpoint.open(tmp_path / name) as file:
        last = max(file, key=lambda tensor: file.info(tensor).offset)
        os.truncate(tmp_path / name, file.info(last).offset + 3)
        with pytest.raises(mk.FileError, match="shrank"):
            file[last]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
