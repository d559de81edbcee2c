"""How text is cut before byte-level BPE, by the name in `tokenizer.ggml.pre`.

Each name is a list of expressions, applied one after another: what one matches is a piece, what
lies between is a piece, and the next cuts all of them further. The expressions are those of the
models' own tokenizers; which name means which is llama.cpp's table (llama-vocab.cpp).
"""

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL
_QWEN35 = (
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASES = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = _CASES % ("", "") + r"|\p{N}|" + _CASED_TAIL
_GPT4O = _CASES % (_CONTRACTION + "?", _CONTRACTION + "?") + r"|\p{N}{1,3}|" + _CASED_TAIL
# Kimi K2 keeps runs of Han characters apart from other letters.
_HANLESS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+" + _CONTRACTION + "?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*" + _CONTRACTION + "?"
)
_KIMI = r"[\p{Han}]+|" + _HANLESS + r"|\p{N}{1,3}|" + _TAIL
_PUNCTUATED = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = (
    _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# DeepSeek LLM's own tokenizer lists the letters of cased scripts one range after another.
_CASED_LETTERS = r"\p{Lu}\p{Ll}\p{Lt}&&[^" + "\U0001d400-\U0001d7ff]"
_DEEPSEEK_LLM = (
    "[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK,
    r"\p{N}+",
)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

# The expressions, then every name that means them; the first is the one to write.
_GROUPS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (_LLAMA3,),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe "
        "glm4 chatglm-bpe",
    ),
    ((_QWEN2,), "qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan solar-open grok-2"),
    ((_QWEN35,), "qwen35"),
    (
        (_GPT2,),
        "gpt-2 phi-2 olmo mpt jais trillion granite-docling exaone4 gigachat roberta-bpe",
    ),
    (
        (r"\p{N}", _GPT2),
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum mellum2",
    ),
    ((r"\p{N}{1,3}", _KANA, _PUNCTUATED), "deepseek-v3 hunyuan-dense joyai-llm"),
    (_DEEPSEEK_LLM, "deepseek-llm"),
    (_CODER, "deepseek-coder"),
    ((_TEKKEN,), "tekken"),
    ((_GPT4O,), "gpt-4o llama4 kanana2 minimax-m2"),
    ((_KIMI,), "kimi-k2"),
    ((_BAILING,), "bailingmoe bailingmoe2 llada-moe"),
    ((_SEED,), "seed-coder"),
    ((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"), "falcon"),
    (_DEFAULT, "default"),
)
#: name -> expressions
SPLITTING = {name: rules for rules, names in _GROUPS for name in names.split()}
#: Names whose tokenizer takes a piece that is a token as it is, whatever the merges say.
_LLAMA_NAMES = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0")
WHOLE_PIECES = frozenset({*_LLAMA_NAMES, "lfm2", "tekken"})
#: Names that begin a text with the token of begin unless the file says otherwise.
BEGINNING = WHOLE_PIECES


def name_of(rules: tuple[str, ...], whole_pieces: bool) -> str | None:
    """The name to write for these expressions; None if llama.cpp has none."""
    for name, known in SPLITTING.items():
        if _plain(known) == _plain(rules) and (name in WHOLE_PIECES) == whole_pieces:
            return name
    return next((name for name, known in SPLITTING.items() if _plain(known) == _plain(rules)), None)


def _plain(rules: tuple[str, ...]) -> tuple[str, ...]:
    """Spellings of one expression made the same."""
    return tuple(
        rule.replace(r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTION)
        .replace("(?:", "(")
        .replace(r"[\p{Han}]", r"\p{Han}")
        .removesuffix(r"|\s+")
        for rule in rules
    )
