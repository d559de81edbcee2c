"""llama.cpp's answers about a GGUF file, from llama-cpp-python in a process of its own.

Run as a script by an interpreter that has `llama_cpp`: a JSON request on stdin, a JSON answer on
stdout. `find()` names such an interpreter: the one in MOEKIT_LLAMA_PYTHON, or this one.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def find() -> str | None:
    """A Python that can import llama_cpp; None if there is none."""
    other = os.environ.get("MOEKIT_LLAMA_PYTHON")
    if other:
        return other
    return sys.executable if importlib.util.find_spec("llama_cpp") else None


def ask(path: Path, **request: Any) -> dict[str, Any]:
    """`texts`: their ids, special tokens added; `ids`: logits of each, and `count` greedy ones."""
    python = find()
    assert python is not None
    done = subprocess.run(
        [python, __file__],
        input=json.dumps({"path": str(path), **request}),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _without_tiles(library: Any) -> None:
    """Keep llama.cpp from its AMX buffers, in which the wheels die of an illegal instruction.

    g++ up to 14 declares to `_tile_loadconfig` eight of the 64 bytes that it reads, so the wheel's
    libggml-cpu loads a configuration without rows and columns, and the first `tilezero` raises
    SIGILL: for Q4_0, Q4_1, Q8_0 and K types, whoever wrote the file.
    """
    defaults = library.llama_model_default_params

    def plain() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    library.llama_model_default_params = plain


def main() -> None:
    import llama_cpp

    request = json.loads(sys.stdin.read())
    only = not request.get("ids")
    _without_tiles(llama_cpp.llama_cpp)
    model = llama_cpp.Llama(
        request["path"],
        n_ctx=256,
        n_batch=256,
        n_threads=1,
        n_threads_batch=1,
        logits_all=not only,
        vocab_only=only,
        # The default is a cache in float16.
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=bool(os.environ.get("MOEKIT_LLAMA_VERBOSE")),
    )
    answer: dict[str, Any] = {}
    if "texts" in request:
        answer["texts"] = [
            model.tokenize(text.encode(), add_bos=True, special=request.get("special", True))
            for text in request["texts"]
        ]
    if not only:
        ids = list(request["ids"])
        model.eval(ids)
        answer["logits"] = model.scores[: len(ids)].tolist()
        new = []
        for _ in range(request.get("count", 0)):
            new.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(new[-1:])
        answer["greedy"] = new
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
