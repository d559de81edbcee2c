"""Where the demo model's text comes from: Debian packages, the files taken from each, its licence.

Every source is a Debian 12 package in the section "main", so its text is free by the Debian Free
Software Guidelines; ``licence`` repeats what the package's own ``copyright`` file says.
"""

from __future__ import annotations

from dataclasses import dataclass

# Share of the training tokens that each group supplies. Groups rather than domains, because the
# small literary groups would drown in the manuals if files were drawn in proportion to their size.
MIXTURE: dict[str, float] = {
    "english/novel": 0.085,
    "english/scripture": 0.025,
    "english/story": 0.04,
    "english/essay": 0.05,
    "english/manual": 0.16,
    "german/story": 0.04,
    "german/manual": 0.16,
    "python/code": 0.22,
    "c/code": 0.22,
}
DOMAINS: tuple[str, ...] = ("english", "german", "python", "c")


@dataclass(frozen=True)
class Source:
    """One set of files of one package; ``reader`` names a function of ``readers.py``."""

    package: str
    group: str
    reader: str
    glob: str
    licence: str
    limit: int = 40_000_000  # bytes of clean text taken at most


_HTML = "usr/share/**/*.html"
_PY = "usr/lib/python3*/**/*.py"
_FAQ = "Debian FAQ licence: free copying and modification under the same notice"
_WESNOTH = "GPL-2+"
_CAMPAIGNS = [
    "httt",
    "did",
    "dm",
    "dw",
    "ei",
    "l",
    "low",
    "nr",
    "sof",
    "sota",
    "sotbe",
    "thot",
    "trow",
    "tsg",
    "ttb",
    "utbs",
    "data",
]
_KERNEL = [
    "kernel",
    "mm",
    "fs",
    "lib",
    "net",
    "block",
    "ipc",
    "security",
    "crypto",
    "init",
    "sound/core",
    "drivers/base",
    "drivers/char",
    "drivers/usb",
    "drivers/block",
    "drivers/hid",
    "drivers/input",
    "drivers/md",
    "drivers/pci",
    "drivers/tty",
    "drivers/scsi",
    "drivers/i2c",
    "drivers/spi",
    "drivers/net/ethernet",
]

SOURCES: list[Source] = [
    Source(
        "r-cran-janeaustenr",
        "english/novel",
        "r_strings",
        "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
        "package MIT, novels in the public domain",
    ),
    Source("bible-kjv", "english/scripture", "kjv", "usr/bin/bible", "text public domain; GPL-2+"),
    Source("cfi-en", "english/essay", "html", "usr/share/doc/cfi-en/html/*.htm", "public domain"),
    Source("mh-book", "english/essay", "html", _HTML, "GPL-2+"),
    Source("dict-jargon", "english/essay", "dictd", "usr/share/dictd/*.dict.dz", "public domain"),
    Source("dict-devil", "english/essay", "dictd", "usr/share/dictd/*.dict.dz", "public domain"),
    Source("debian-history", "english/essay", "html", "usr/share/**/*.en.html", "GPL-2+"),
    Source(
        "debian-handbook",
        "english/manual",
        "html",
        "usr/share/doc/debian-handbook/html/en-US/*.html",
        "GPL-2+ or CC-BY-SA-3.0",
    ),
    Source("debian-reference-en", "english/manual", "html", "usr/share/**/*.en.html", "GPL-2+"),
    Source("developers-reference", "english/manual", "html", _HTML, "GPL-2+"),
    Source("debian-faq", "english/manual", "html", "usr/share/**/*.en.html", _FAQ),
    Source("debian-policy", "english/manual", "html", "usr/share/**/policy.html/*.html", "GPL-2+"),
    Source("installation-guide-amd64", "english/manual", "html", "usr/share/**/en/*.html", "GPL-2"),
    Source("maint-guide", "english/manual", "html", "usr/share/**/*.en.html", "GPL-2+"),
    Source("harden-doc", "english/manual", "html", "usr/share/**/en-US/*.html", "GPL-2+"),
    Source("debian-edu-doc-en", "english/manual", "html", "usr/share/**/*bookworm*.html", "GPL-2+"),
    Source("aptitude-doc-en", "english/manual", "html", _HTML, "GPL-2+"),
    Source("libreoffice-help-en-us", "english/manual", "html", _HTML, "MPL-2.0"),
    Source(
        "gnome-user-docs", "english/manual", "mallard", "usr/share/help/C/**/*.page", "CC-BY-SA-3.0"
    ),
    Source("gimp-help-en", "english/manual", "html", _HTML, "GFDL-1.2+ without invariant sections"),
    Source("git-doc", "english/manual", "html", _HTML, "GPL-2"),
    Source("vim-doc", "english/manual", "html", _HTML, "Vim licence"),
    Source("postgresql-doc-15", "english/manual", "html", _HTML, "PostgreSQL"),
    Source("sqlite3-doc", "english/manual", "html", _HTML, "public domain"),
    Source("python3.11-doc", "english/manual", "html", _HTML, "PSF-2.0"),
    Source(
        "debian-handbook",
        "german/manual",
        "html",
        "usr/share/doc/debian-handbook/html/de-DE/*.html",
        "GPL-2+ or CC-BY-SA-3.0",
    ),
    Source("debian-reference-de", "german/manual", "html", "usr/share/**/*.de.html", "GPL-2+"),
    Source("developers-reference-de", "german/manual", "html", _HTML, "GPL-2+"),
    Source("debian-faq-de", "german/manual", "html", "usr/share/**/*.de.html", _FAQ),
    Source("installation-guide-amd64", "german/manual", "html", "usr/share/**/de/*.html", "GPL-2"),
    Source("maint-guide-de", "german/manual", "html", "usr/share/**/*.de.html", "GPL-2+"),
    Source("harden-doc", "german/manual", "html", "usr/share/**/de-DE/*.html", "GPL-2+"),
    Source(
        "debian-paketmanagement-buch",
        "german/manual",
        "html",
        "usr/share/**/*allinone.html",
        "CC-BY-SA-4.0",
    ),
    Source("debian-edu-doc-de", "german/manual", "html", "usr/share/**/*bookworm*.html", "GPL-2+"),
    Source("libreoffice-help-de", "german/manual", "html", _HTML, "MPL-2.0"),
    Source(
        "gnome-user-docs", "german/manual", "mallard", "usr/share/help/de/**/*.page", "CC-BY-SA-3.0"
    ),
    Source("gimp-help-de", "german/manual", "html", _HTML, "GFDL-1.2+ without invariant sections"),
    Source("libpython3.11-stdlib", "python/code", "code", _PY, "PSF-2.0"),
    Source("libpython3.11-minimal", "python/code", "code", _PY, "PSF-2.0"),
    Source("python3-sympy", "python/code", "code", _PY, "BSD-3-Clause"),
    Source("python3-numpy", "python/code", "code", _PY, "BSD-3-Clause"),
    Source("python3-scipy", "python/code", "code", _PY, "BSD-3-Clause"),
    Source("python3-django", "python/code", "code", _PY, "BSD-3-Clause"),
    Source("python3-networkx", "python/code", "code", _PY, "BSD-3-Clause"),
    Source("python3-matplotlib", "python/code", "code", _PY, "Matplotlib licence (PSF style)"),
    Source("python3-nltk", "python/code", "code", _PY, "Apache-2.0"),
    Source("glibc-source", "c/code", "code", "glibc-2.36/**/*.c", "LGPL-2.1+", 6_000_000),
]
SOURCES += [
    Source(
        f"wesnoth-1.16-{part}",
        f"{language}/story",
        reader,
        "usr/share/games/wesnoth/1.16/locale/de/LC_MESSAGES/*.mo",
        _WESNOTH,
    )
    for part in _CAMPAIGNS
    for language, reader in (("english", "mo_source"), ("german", "mo_translation"))
]
SOURCES += [
    Source(
        "linux-source-6.1", "c/code", "code", f"linux-source-6.1/{part}/**/*.c", "GPL-2", 4_000_000
    )
    for part in _KERNEL
]
