"""Which packed format each class of weights gets."""

import re
from dataclasses import dataclass

from ..checkpoint.ggml_types import QUANTISED


@dataclass(frozen=True, slots=True)
class Formats:
    """The packed format of each class of weights; None keeps what the file holds.

    `embedding` is a dtype instead: rows of a table are looked up, not multiplied.
    """

    experts: str | None = None
    attention: str | None = None
    dense: str | None = None
    head: str | None = None
    embedding: str | None = None
    router: str = "f32"

    @classmethod
    def of(cls, format: str | None, router_format: str = "f32") -> "Formats":
        """One format for all large weights.

        Below 8 bits the head takes 8, in ggml's types where the others do (a GGUF file can say it
        then): it is read once a token, and its errors go straight into the logits. The table of
        embeddings has 16 bits wherever weights have 16 or fewer.
        """
        if format is None:
            return cls(router=router_format)
        bits = _bits_of(format)
        eight_bits = "q8_0" if format.upper() in QUANTISED else "int8"
        head = format if bits >= 8 else eight_bits
        table = {"f32": "f32", "f16": "f16"}.get(format, "bf16")
        return cls(format, format, format, head, table, router_format)


def _bits_of(format: str) -> int:
    found = re.search(r"\d+", format)
    return int(found.group()) if found else 8
