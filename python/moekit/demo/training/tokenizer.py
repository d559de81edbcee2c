"""Trains the byte-level BPE of the demo model and encodes the corpus.

    python tokenizer.py WORKDIR OUTDIR

Writes ``tokenizer.json`` and ``tokenizer_config.json`` to OUTDIR and, for every group of the
corpus, ``WORKDIR/tokens/{train,held}/<domain>/<group>.bin`` (uint16, one ``<|end|>`` per document).
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
from sources import MIXTURE
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 4096
SPECIAL = ["<|end|>", "<|pad|>"]
SAMPLE_BYTES = 16_000_000  # text the merges are counted on, drawn in the training mixture
ENCODED_LIMIT = 32_000_000  # characters of a group that are encoded: more than one run reads

# Words with one leading space or sign (" the", "_name", ".join"), numbers in threes, punctuation
# with the line break and indentation after it (";\n\t\t", ":\n    "): code costs few tokens.
_PIECES = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+(?:[\r\n]+[ \t]*)?"
    r"|\s*[\r\n]+[ \t]*|\s+(?!\S)|\s+"
)

# A base model: a conversation is the plain text of its messages, one paragraph each, to continue.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\n' }}{% endif %}"
)


def sample(work: Path) -> list[str]:
    texts = []
    for group, share in MIXTURE.items():
        documents = (work / "text" / "train" / f"{group}.txt").read_text("utf-8").split("\0")
        random.Random(group).shuffle(documents)
        wanted = int(SAMPLE_BYTES * share)
        for document in documents:
            if wanted <= 0:
                break
            texts.append(document[:wanted])
            wanted -= len(document)
    return texts


def train(work: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        sample(work),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=24,
            show_progress=False,
        ),
    )
    return tokenizer


def encode(tokenizer: Tokenizer, work: Path) -> None:
    end = tokenizer.token_to_id("<|end|>")
    for side in ("train", "held"):
        for group in MIXTURE:
            text = (work / "text" / side / f"{group}.txt").read_text("utf-8")
            text = text[:ENCODED_LIMIT]
            ids: list[int] = []
            for encoding in tokenizer.encode_batch(text.split("\0"), add_special_tokens=False):
                ids.extend(encoding.ids)
                ids.append(end)
            target = work / "tokens" / side / f"{group}.bin"
            target.parent.mkdir(parents=True, exist_ok=True)
            np.asarray(ids, dtype=np.uint16).tofile(target)
            size = len(text.encode())
            print(
                f"{side}/{group:20s} {len(ids):9d} tokens {size / max(len(ids), 1):5.2f} bytes each"
            )


def main() -> None:
    work, out = Path(sys.argv[1]), Path(sys.argv[2])
    tokenizer = train(work)
    out.mkdir(parents=True, exist_ok=True)
    # Compact: the indented form of the same file is half as large again.
    content = json.loads(tokenizer.to_str())
    (out / "tokenizer.json").write_text(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|pad|>",
        "eos_token": "<|end|>",
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    encode(tokenizer, work)


if __name__ == "__main__":
    main()
