"""Readers: one file of a Debian package in, named plain-text documents out.

Every reader yields ``(name, text)``; ``name`` is the same for a text and its translation, so that
the split into training and held-out documents cannot put a page in one and its translation in the
other.
"""

from __future__ import annotations

import gettext
import gzip
import html
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

Document = tuple[str, str]

_BLOCKS = frozenset(
    [
        "p",
        "div",
        "section",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "li",
        "ul",
        "ol",
        "dl",
        "dt",
        "dd",
        "table",
        "tr",
        "td",
        "th",
        "blockquote",
        "br",
        "hr",
    ]
)
_SKIPPED = frozenset(
    ["script", "style", "head", "nav", "header", "footer", "form", "select", "button", "svg"]
)
_VOID = frozenset(["br", "hr", "img", "input", "meta", "link", "wbr", "col", "area", "base"])
_SITE_WORDS = re.compile(
    r"\b(nav\w*|sphinxsidebar|related|footer|header|toc|toctree-wrapper|breadcrumbs?|menu|"
    r"titlepage|sidebar\w*|search\w*|headerlink)\b"
)


class _TextOf(HTMLParser):
    """Paragraphs of an HTML page without its navigation; ``pre`` keeps its line breaks."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.open: list[tuple[str, bool]] = []  # (tag, starts a skipped subtree)
        self.skipped = 0
        self.pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS or tag == "pre":
            self.parts.append("\n\n" if tag != "br" else "\n")
        if tag in _VOID:
            return
        labels = " ".join(v or "" for k, v in attrs if k in ("class", "id", "role"))
        skip = tag in _SKIPPED or (tag != "body" and bool(_SITE_WORDS.search(labels)))
        self.open.append((tag, skip))
        self.skipped += skip
        self.pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS or tag == "pre":
            self.parts.append("\n\n")
        # Old pages leave <p> and <li> open: close everything above the matching tag.
        if any(name == tag for name, _ in self.open):
            while self.open:
                name, skip = self.open.pop()
                self.skipped -= skip
                self.pre -= name == "pre"
                if name == tag:
                    break

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.parts.append(data.replace("\t", "    ") if self.pre else re.sub(r"\s+", " ", data))


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        raw = gzip.decompress(raw)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _page_name(path: Path) -> str:
    return re.sub(r"\.(en|de)\b", "", path.name)


def read_html(path: Path) -> Iterator[Document]:
    page = _decoded(path)
    parser = _TextOf()
    parser.feed(page)
    yield _page_name(path), "".join(parser.parts)


def read_mallard(path: Path) -> Iterator[Document]:
    """GNOME's help pages: the text of each block element, metadata left out."""
    root = ElementTree.parse(path).getroot()
    blocks: list[str] = []

    def visit(node: ElementTree.Element) -> None:
        tag = node.tag.rsplit("}", 1)[-1]
        if tag in ("info", "media", "links"):
            return
        if tag in ("p", "title", "code", "screen", "desc"):
            blocks.append(re.sub(r"\s+", " ", "".join(node.itertext())).strip())
            return
        for child in node:
            visit(child)

    visit(root)
    yield _page_name(path), "\n\n".join(blocks)


def read_code(path: Path) -> Iterator[Document]:
    yield str(path).split("/root/", 1)[-1], _decoded(path)


def read_r_strings(path: Path) -> Iterator[Document]:
    """Character vectors of an R data base (``.rdb``): zlib blocks of R's XDR serialisation.

    Each object is one novel, one string a printed line; consecutive lines are rejoined to
    paragraphs so that the model learns sentences and not the width of a page.
    """
    data = path.read_bytes()
    at = 0
    while at + 4 < len(data):
        inflate = zlib.decompressobj()
        try:
            block = inflate.decompress(data[at + 4 :])
        except zlib.error:
            return
        at = len(data) - len(inflate.unused_data)
        lines: list[str] = []
        cursor = 0
        # A CHARSXP is its flags (type 9, an encoding bit in the second byte), a length, the bytes.
        for match in re.finditer(rb"\x00[\x00-\x06][\x00\x01]\x09(....)", block, re.DOTALL):
            if match.start() < cursor:
                continue
            size = struct.unpack(">I", match.group(1))[0]
            cursor = match.end() + size
            lines.append(block[match.end() : cursor].decode("utf-8", "replace"))
        text = "\n".join(lines)
        if len(text) > 50_000:
            title = next(line for line in lines if line.strip()).strip()
            # A chapter is a document for shuffling; the whole novel shares one split.
            for number, chapter in enumerate(re.split(r"\n(?=CHAPTER |Chapter )", text)):
                joined = re.sub(r"(?<=\S)\n(?=\S)", " ", chapter)
                yield f"{title}#{number}", joined


def read_kjv(path: Path) -> Iterator[Document]:
    """The King James Version through its own reader program, verse numbers removed."""
    data = path.parents[3] / "bible-kjv-text" / "usr" / "lib"
    command = [str(path), "-p", str(data), "-l8000", "gen1:1-rev22:21"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in re.split(r"\n(?=(?:[1-3] )?[A-Z][A-Za-z ]+ \d+\n)", "\n" + out):
        head, _, body = part.strip().partition("\n")
        book = head.rsplit(" ", 1)[0]
        yield f"{book}#{head}", head + "\n\n" + re.sub(r"(?m)^ *\d+ ", "", body.strip())


def read_dictd(path: Path) -> Iterator[Document]:
    """A dictd data base: a headword line, then its (usually indented) definition."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", _decoded(path).replace("\r", "")):
        head, newline, body = paragraph.strip("\n").partition("\n")
        if newline and body.startswith(" ") and not head.startswith(" "):
            paragraphs.append(head)
            paragraph = body
        paragraphs.append(re.sub(r"\s+", " ", re.sub(r"[{}]", "", paragraph)).strip())
    for start in range(0, len(paragraphs), 80):
        yield f"{path.name}#{path.name}{start}", "\n\n".join(paragraphs[start : start + 80])


_MARKUP = re.compile(r"</?[a-z]+>|<[a-z]+>(?:text|dst)=.*?</[a-z]+>|\\b(?:text|dst)=")


def _catalogue(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as handle:
        table = gettext.GNUTranslations(handle)._catalog  # type: ignore[attr-defined]
    for source, translation in table.items():
        if isinstance(source, str) and isinstance(translation, str) and len(source) > 60:
            if "$" in source or "<span" in source:  # templates filled in at run time
                continue
            source = source.split("^")[-1].split("\x04")[-1]
            yield _MARKUP.sub("", source), _MARKUP.sub("", translation)


def read_mo_source(path: Path) -> Iterator[Document]:
    yield path.name, "\n\n".join(source for source, _ in _catalogue(path))


def read_mo_translation(path: Path) -> Iterator[Document]:
    yield path.name, "\n\n".join(translation for _, translation in _catalogue(path))


READERS: dict[str, Callable[[Path], Iterator[Document]]] = {
    "html": read_html,
    "mallard": read_mallard,
    "code": read_code,
    "r_strings": read_r_strings,
    "kjv": read_kjv,
    "dictd": read_dictd,
    "mo_source": read_mo_source,
    "mo_translation": read_mo_translation,
}


def plain(text: str) -> str:
    """One form for what looks alike: typographic quotes, odd spaces, markup left by catalogues."""
    text = html.unescape(text) if "&" in text and "&amp;" in text else text
    text = re.sub("[\u2018\u2019\u201a\u201b\u02bc]", "'", text)
    text = re.sub("[\u201c\u201d\u201e\u201f\u00ab\u00bb]", '"', text)
    text = re.sub("[\u00a0\u2000-\u200a\u202f\u3000]", " ", text)
    text = re.sub("[\u00ad\u200b-\u200f\u2028\u2029\ufeff\u00b6\r]", "", text)
    text = re.sub("[\u2010\u2011]", "-", text)
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
