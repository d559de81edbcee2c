"""The table of what works for which family, from the lists that the tests go through.

`python tests_py/support_table.py` writes python/moekit/models/SUPPORT.md; a test holds that it is
current. A mark stands for a test that goes through that family, never for hope.
"""

from pathlib import Path

import checkpoints
import gguf_converter
import grouped_families
import latent_families
import recurrent_families
import saved_families
import test_models_gguf_hybrids
import test_models_quantised

from moekit.checkpoint.gguf_config import WRITTEN
from moekit.checkpoint.gguf_hybrids import HYBRIDS
from moekit.models import FAMILIES
from moekit.saving.gguf_metadata import ALIKE
from moekit.saving.gguf_states import STATES

TARGET = Path(__file__).parents[1] / "python" / "moekit" / "models" / "SUPPORT.md"
COLUMNS = ("safetensors", "FP8", "MXFP4", "GPTQ, AWQ", "GGUF in", "GGUF out", "record", "intervene")
COMPARED = {
    *checkpoints.FAMILIES,
    *grouped_families.FIELDS,
    *latent_families.FIELDS,
    *recurrent_families.FIELDS,
    "switch_transformers",
    "deepseek",
}
# Names of configurations that another family's code reads; wrappers around a text model.
SAME = {
    "kimi_k2": "deepseek_v3",
    "llama4": "llama4_text",
    "gemma4": "gemma4_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
MXFP4 = {"gpt_oss", "deepseek_v4"}
HEAD = """\
# What works for which family

Written by `python tests_py/support_table.py` from the lists that the tests go through; a test holds
that it is current.

- **safetensors**: logits, experts and greedy tokens compared with transformers (`deepseek`, which
  transformers does not have, with a reference of its own); in one file or in shards, in f32, bf16
  and f16.
- **FP8** (e4m3, scales for 128 by 128), **GPTQ, AWQ**: a checkpoint quantised by loops of the
  tests; every matrix of the model compared with the values that the file means.
- **MXFP4** stays as it is in memory; so do DeepSeek-V4's experts in FP4.
- **GGUF in**: the logits have the bytes of those of the checkpoint that the file was made from.
- **GGUF out**: the file read again is the same model, and where llama-cpp-python is installed it
  opens the file and chooses the same tokens (exceptions below). A setting that GGUF has no key for
  is refused by name.
- **record**, **intervene**: routing recorded, replayed to the byte, masked and forced.

"yes" stands for a test, "-" for what there is none of. llama.cpp (llama-cpp-python 0.3.36, and its
source as of November 2026) has no architecture for `axk1`, `flex_olmo`, `jetmoe`, `longcat_flash`
and `switch_transformers` (its `t5` has no experts).

Its other architectures with experts belong to models that moekit has no family for: `arctic`,
`bailingmoe`, `bailingmoe2`, `deci`, `dots3note`, `glm5-next`, `grok`, `grovemoe`, `hy_v4`,
`kimi-k3`, `llada-moe`, `minicpm`, `nomic-bert-moe`, `rnd1`, `smallthinker`, `step35`; or to
pictures: `deepseek2-ocr`, `qwen3vlmoe`. `mistral3` and `llama-embed` with experts are `llama`, the
name that Mixtral's files have.

"""


THEIRS = """\
- `minimax` in 16 bits: transformers saves and reads the tables of decays in the checkpoint's dtype.
  moekit computes them from the configuration. On the same 16-bit weights, against exact tables:
  moekit within 1e-4, transformers in float32 5e-3 to 9e-2 off, in its own 16 bits 0.06 to 8.
- `deepseek_v4`, `minimax_m3_vl_text`: the number of shared experts in config.json is not read.
"""
OURS = """\
- LongRoPE (`phimoe`, and every family of grouped-query or latent attention whose `rope_type` is
  `longrope`): a pass rotates its own tokens by the length that it brings the sequence to. A prompt
  in one pass agrees with transformers within the trained length and beyond (2e-4). Cached keys stay
  as they are when a sequence grows past the trained length; `generate` of `phimoe` reads everything
  anew there, as transformers' does. `deepseek_v4`, `gemma4` and `jetmoe` refuse it.
- `rope_type` `dynamic`: the frequencies are those of sequences up to `max_position_embeddings`;
  transformers stretches them further in longer ones.
"""


def marks(family: str) -> list[bool]:
    """One for each column."""
    known = SAME.get(family, family)
    rows = {row.family for row in WRITTEN}
    quantised = known in test_models_quantised.EVERY
    read = known in rows | {row.family for row in HYBRIDS} or known in ALIKE
    written = known in saved_families.BOTH or family in ALIKE or known == "deepseek"
    written = written or known in STATES
    assert not read or (
        known in {*gguf_converter.ARCHES, *test_models_gguf_hybrids.ARCHES} or written
    ), known
    return [
        known in COMPARED,
        quantised,
        known in MXFP4,
        quantised and known not in test_models_quantised.STACKED,
        read,
        written,
        known in COMPARED,
        known in COMPARED,
    ]


def table() -> str:
    """The whole file."""
    lines = ["| family | " + " | ".join(COLUMNS) + " | GGUF architecture |"]
    lines.append("| --- " * (len(COLUMNS) + 2) + "|")
    names = {row.family: row.name for row in (*HYBRIDS, *WRITTEN)}
    for family in sorted(FAMILIES):
        known = SAME.get(family, family)
        said = f"`{family}`" + (f" (as `{known}`)" if known != family else "")
        cells = ["yes" if mark else "-" for mark in marks(family)]
        name = names.get(ALIKE.get(known, known), "")
        lines.append(f"| {said} | " + " | ".join(cells) + f" | {f'`{name}`' if name else '-'} |")
    differing = [row for row in (*HYBRIDS, *WRITTEN) if row.differs and row.family in FAMILIES]
    notes = [f"- `{row.name}` (`{row.family}`): {row.differs}." for row in differing]
    return (
        HEAD
        + "\n".join(lines)
        + "\n\nWhere llama.cpp computes something else than transformers and moekit:\n\n"
        + "\n".join(notes)
        + "\n\nWhere transformers computes something else than its own code means:\n\n"
        + THEIRS
        + "\n\nWhere moekit goes a way of its own:\n\n"
        + OURS
    )


if __name__ == "__main__":
    TARGET.write_text(table(), encoding="utf-8")
