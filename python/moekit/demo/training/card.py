"""Writes SOURCES.md from ``sources.py`` and the corpus report.

python card.py WORKDIR OUTDIR
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from sources import MIXTURE, SOURCES

# (domain, where the text is from, author and licence)
EXTRACTS = (
    (
        "english",
        "*Persuasion*, chapter 23 (`r-cran-janeaustenr`)",
        "Jane Austen, 1817; public domain",
    ),
    (
        "german",
        "*Das Debian-Administrationshandbuch*, automated installation (`debian-handbook`)",
        "Raphaël Hertzog, Roland Mas and the translators; GPL-2+ or CC-BY-SA-3.0",
    ),
    (
        "python",
        "`nltk/metrics/paice.py` (`python3-nltk`)",
        "NLTK Project, Lauri Hallila; Apache-2.0",
    ),
    (
        "c",
        "`lib/crypto/curve25519-hacl64.c` (`linux-source-6.1`)",
        "INRIA, Microsoft Corporation, Jason A. Donenfeld; GPL-2.0 or MIT, taken under MIT",
    ),
)


def version(work: Path, package: str) -> str:
    deb = next((work / "deb").glob(f"{package}_*.deb"))
    out = subprocess.run(
        ["dpkg-deb", "-f", str(deb), "Version"], capture_output=True, text=True, check=True
    )
    return out.stdout.strip()


def main() -> None:
    work, out = Path(sys.argv[1]), Path(sys.argv[2])
    report = json.loads((work / "text" / "report.json").read_text())
    rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for source in SOURCES:
        parts = rows[(source.group, source.package, source.licence)]
        part = source.glob.split("/**")[0].removeprefix("linux-source-6.1/")
        if source.package == "linux-source-6.1":
            parts.append(part)
    lines = [
        "# Sources of the demo model's text",
        "",
        'All text comes from packages of Debian 12 ("bookworm"), section main. The licences',
        "below are what each package's own `copyright` file states for the files used. Licence",
        "headers, navigation, tables and repeated paragraphs were removed. Of the text itself",
        "only the extracts in `texts/` are passed on.",
        "",
        "## Extracts that ship with the package",
        "",
        "All four are from held-out documents: the model was not trained on them.",
        "",
        "| file | from | author and licence |",
        "| --- | --- | --- |",
        *(f"| `texts/{domain}.txt` | {origin} | {by} |" for domain, origin, by in EXTRACTS),
        "",
        "## Training and held-out text",
        "",
        "Bytes after cleaning and deduplication; *share* is the part of the training tokens.",
        "",
        "| group | share | training | held out |",
        "| --- | --- | --- | --- |",
    ]
    for group, share in MIXTURE.items():
        train, held = report[f"train/{group}"], report[f"held/{group}"]
        lines.append(
            f"| {group} | {share:.1%} "
            f"| {train['bytes'] / 1e6:.2f} MB, {train['documents']} documents "
            f"| {held['bytes'] / 1e6:.2f} MB, {held['documents']} documents |"
        )
    lines += ["", "| group | package | version | licence |", "| --- | --- | --- | --- |"]
    for (group, package, licence), parts in rows.items():
        note = f" ({', '.join(parts)})" if parts else ""
        lines.append(f"| {group} | `{package}`{note} | {version(work, package)} | {licence} |")
    (out / "SOURCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
