"""Builds the demo model's corpus from Debian packages.

    python corpus.py WORKDIR            # download, unpack, read, clean, deduplicate, split

Writes ``WORKDIR/text/{train,held}/<domain>/<group>.txt`` (UTF-8, documents separated by a NUL byte)
and ``WORKDIR/text/report.json``. Needs ``apt-get`` of Debian 12, no root.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from readers import READERS, plain
from sources import SOURCES, Source

# Held out by name where the hash could take a whole literary group or nothing of it.
HELD_NOVELS = ("PERSUASION",)
HELD_BOOKS = ("Ruth", "Jonah", "Philippians", "James", "Ecclesiastes")
HELD_STORIES = ("wesnoth-sof.mo", "wesnoth-tb.mo")
HELD_SHARE = 30  # one document in HELD_SHARE otherwise

_LICENCE = re.compile(r"(?i)licen[cs]e|copyright|spdx|all rights reserved|warrant")
_NOT_TEXT = re.compile(r"[^\x09\x0a\x20-\x7e\u00a0-\u017f\u2013\u2014\u2026\u20ac]")


def download(work: Path) -> None:
    """Fetches and unpacks each package once."""
    (work / "deb").mkdir(parents=True, exist_ok=True)
    for package in sorted({s.package for s in SOURCES} | {"bible-kjv-text"}):
        target = work / "root" / package
        if target.exists():
            continue
        if not list((work / "deb").glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "-q", "download", package], cwd=work / "deb", check=True)
        deb = next((work / "deb").glob(f"{package}_*.deb"))
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", str(deb), str(target)], check=True)
        for tarball in target.glob("usr/src/**/*.tar.xz"):
            subprocess.run(["tar", "-xf", str(tarball), "-C", str(target)], check=True)


def _clean_code(text: str) -> str:
    """Drops the licence comment at the top: it would be the best learnt text of all."""
    text = text.replace("\t", "    ") if text.count("\n\t") < 3 else text
    head = re.match(r"\s*(?:/\*.*?\*/\s*|//[^\n]*\n\s*|#[^\n]*\n\s*)+", text, re.DOTALL)
    if head and _LICENCE.search(head.group()):
        text = text[head.end() :]
    return text


def _is_code_worth_keeping(text: str) -> bool:
    lines = text.splitlines()
    if not 15 <= len(lines) <= 6000 or max(map(len, lines)) > 400:
        return False
    digits = sum(c.isdigit() for c in text)
    return digits < 0.12 * len(text)  # tables of register values and test vectors


def _clean_prose(text: str) -> str:
    """Keeps paragraphs that are mostly words; navigation, tables and notices go."""
    kept = []
    for paragraph in text.split("\n\n"):
        paragraph = paragraph.strip("\n ") if "\n " not in paragraph else paragraph.strip("\n")
        letters = sum(c.isalpha() or c == " " for c in paragraph)
        if len(paragraph) < 3 or letters < 0.72 * len(paragraph):
            continue
        if len(paragraph) < 400 and _LICENCE.search(paragraph) and "©" in paragraph:
            continue
        kept.append(paragraph)
    # A run of short lines is a list of links or a table of contents.
    short = [len(p) < 40 for p in kept]
    return "\n\n".join(
        p for i, p in enumerate(kept) if not (short[i] and sum(short[max(0, i - 3) : i + 4]) > 4)
    )


def _is_held(source: Source, name: str) -> bool:
    stem = name.split("#")[0]
    if source.group == "english/novel":
        return stem.strip().upper() in HELD_NOVELS
    if source.group == "english/scripture":
        return stem in HELD_BOOKS
    if source.group.endswith("/story"):
        return stem in HELD_STORIES
    # The language is no part of the key: a page and its translation fall on the same side.
    key = name if source.reader == "dictd" else stem
    digest = hashlib.sha1(key.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_SHARE == 0


def _chunks(text: str) -> list[bytes]:
    """Hashes of the long paragraphs (prose) or of line triples (code), blanks ignored."""
    pieces = [re.sub(r"\W+", "", p).lower() for p in re.split(r"\n\s*\n", text)]
    return [hashlib.sha1(p.encode()).digest()[:10] for p in pieces if len(p) > 60]


def read_documents(work: Path) -> dict[str, list[tuple[bool, str]]]:
    """All clean documents by group: (held out, text)."""
    found: dict[str, list[tuple[bool, str]]] = defaultdict(list)
    for source in SOURCES:
        taken = 0
        files = sorted((work / "root" / source.package).glob(source.glob))
        random.Random(source.package).shuffle(files)
        for path in files:
            if taken > source.limit or not path.is_file() or path.is_symlink():
                continue
            try:
                documents = list(READERS[source.reader](path))
            except (UnicodeDecodeError, SyntaxError) as error:
                print(f"skipped {path}: {error}", file=sys.stderr)
                continue
            for name, raw in documents:
                text = _clean_code(raw) if source.reader == "code" else _clean_prose(plain(raw))
                strange = len(_NOT_TEXT.findall(text))
                if len(text) < 300 or strange > 0.004 * len(text):
                    continue
                if source.reader == "code" and not _is_code_worth_keeping(text):
                    continue
                text = _NOT_TEXT.sub("", text).strip() + "\n"
                found[source.group].append((_is_held(source, name), text))
                taken += len(text)
        print(f"{source.group:20s} {source.package:28s} {taken / 1e6:7.2f} MB", flush=True)
    return found


def deduplicate(documents: dict[str, list[tuple[bool, str]]]) -> dict[str, list[tuple[bool, str]]]:
    """Removes repeated paragraphs from prose and repeated files from code.

    Held-out documents go first, so whatever they contain is removed from the training side.
    """
    seen: set[bytes] = set()
    # "Next", "Contents", "Download the e-book": what a site puts on every page.
    frequent: Counter[str] = Counter()
    for group, entries in documents.items():
        if group.endswith("/manual"):
            for _, text in entries:
                frequent.update({p for p in text.strip().split("\n\n") if len(p) < 100})
    result: dict[str, list[tuple[bool, str]]] = defaultdict(list)
    for held_pass in (True, False):
        for group, entries in documents.items():
            for held, text in entries:
                if held is not held_pass:
                    continue
                if group.endswith("/code"):
                    marks = _chunks(text)
                    old = sum(m in seen for m in marks)
                    if old > 0.2 * len(marks):
                        continue
                    seen.update(marks)
                else:
                    kept = []
                    for paragraph in text.split("\n\n"):
                        if frequent[paragraph.strip()] > 25:
                            continue
                        marks = _chunks(paragraph)
                        if marks and all(m in seen for m in marks):
                            continue
                        seen.update(marks)
                        kept.append(paragraph)
                    text = "\n\n".join(kept).strip() + "\n"
                    if len(text) < 300:
                        continue
                result[group].append((held, text))
    return result


def main() -> None:
    work = Path(sys.argv[1])
    download(work)
    documents = deduplicate(read_documents(work))
    report = {}
    for group, entries in documents.items():
        random.Random(group).shuffle(entries)
        for side, wanted in (("train", False), ("held", True)):
            texts = [text for held, text in entries if held is wanted]
            target = work / "text" / side / f"{group}.txt"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("\0".join(texts), encoding="utf-8")
            report[f"{side}/{group}"] = {"documents": len(texts), "bytes": target.stat().st_size}
    (work / "text" / "report.json").write_text(json.dumps(report, indent=1))
    for key, value in report.items():
        print(f"{key:28s} {value['documents']:6d} documents {value['bytes'] / 1e6:8.2f} MB")


if __name__ == "__main__":
    main()
