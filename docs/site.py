"""Builds the site of these pages, and fails on a dead link.

    python3 -m venv target/envs/docs && target/envs/docs/bin/pip install -r docs/requirements.txt
    target/envs/docs/bin/python docs/site.py target/site

README.md is its first page. A file of this repository that a page links to becomes a page too, and nothing is loaded from
elsewhere, so that the site needs no network.
"""

import html.parser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Pages that lie elsewhere in the repository, and their names on the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "recipes/family/README.md": "family.md",
    "recipes/family-qwen2/README.md": "family-qwen2.md",
    "recipes/statistics/README.md": "family-statistics.md",
}
LANGUAGES = {".rs": "rust", ".py": "python", ".yml": "yaml", ".yaml": "yaml", ".toml": "toml", ".sh": "sh"}
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)((?: \"[^\"]*\")?\))")


def pages():
    """The pages: where each lies in the repository, and its name on the site."""
    found = {f"docs/{page.name}": page.name for page in sorted((ROOT / "docs").glob("*.md"))}
    return found | ELSEWHERE


def file_page(file):
    """The page of a file of the repository. Zensical has none for hidden files."""
    return f"files/{file.lstrip('.')}.md"


def stage(docs):
    """Puts the pages, their pictures and the files that they link to into a folder. Returns what leads nowhere."""
    names, files = pages(), set()
    config = (ROOT / "docs/zensical.toml").read_text()
    dead = [f"zensical.toml: {page}: its nav lacks this page" for page in names if f'"{names[page]}"' not in config]
    shutil.copytree(ROOT / "docs/images", docs / "images", ignore=shutil.ignore_patterns("*.sh"))
    for name in ["iframe-worker.js", "site.css"]:
        shutil.copy(ROOT / "docs" / name, docs)

    def target(page, link):
        if urllib.parse.urlsplit(link).scheme:
            return link
        path, _, anchor = link.partition("#")
        if not path:
            return link
        file = os.path.normpath(os.path.join(os.path.dirname(page), path))
        anchor = f"#{anchor}" if anchor else ""
        if file in names:
            return names[file] + anchor
        if not (ROOT / file).is_file():
            dead.append(f"{page}: {link}: there is no file {file}")
        elif file.startswith("docs/images/"):
            return file.removeprefix("docs/")
        else:
            files.add(file)
        return file_page(file) + anchor

    for page, name in names.items():
        parts = FENCE.split((ROOT / page).read_text())
        for index in range(0, len(parts), 2):
            parts[index] = LINK.sub(lambda link: link[1] + target(page, link[2]) + link[3], parts[index])
        (docs / name).write_text("".join(parts))
    for file in files:
        text = (ROOT / file).read_text()
        if not file.endswith(".md"):
            language = LANGUAGES.get(pathlib.Path(file).suffix, "text")
            text = f"# {file}\n\n````` {language}\n{text}\n`````\n"
        place = docs / file_page(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"---\nsearch:\n  exclude: true\n---\n{text}")
    return dead


class Page(html.parser.HTMLParser):
    """The anchors of a page, what it links to, and what a browser loads with it."""

    def __init__(self, file):
        super().__init__()
        self.anchors, self.links, self.loads = set(), [], []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name"):
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)
                if name == "src" or ("rel", "stylesheet") in attributes:
                    self.loads.append(value)


def dead_links(site):
    """The links of a built site that lead to no file, or to no anchor of it, and what it loads from elsewhere."""
    found = {file: Page(file) for file in sorted(site.rglob("*.html"))}
    for file, page in found.items():
        for load in page.loads:
            if urllib.parse.urlsplit(load).netloc:
                yield f"{file.relative_to(site)}: {load}: it needs the network"
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            path, anchor = urllib.parse.unquote(parts.path), urllib.parse.unquote(parts.fragment)
            start = site if path.startswith("/") else file.parent
            to = pathlib.Path(os.path.normpath(start / path.lstrip("/"))) if path else file
            if not to.exists():
                yield f"{file.relative_to(site)}: {link}: there is no such page"
            elif anchor and to in found and anchor not in found[to].anchors:
                yield f"{file.relative_to(site)}: {link}: the page has no such anchor"


def main(site):
    """Builds the site into a folder, which is replaced."""
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        dead = stage(work / "docs")
        shutil.copy(ROOT / "docs/zensical.toml", work)
        built = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=work)
        if built.returncode != 0:
            sys.exit(built.returncode)
        dead += dead_links(work / "site")
        if dead:
            sys.exit("faults of the site:\n" + "\n".join(dead))
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(work / "site", site)
    print(f"the site is in {site}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
