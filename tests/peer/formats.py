"""Holds reports against the schemas of their formats: JUnit against an XSD, SARIF against the schema of 2.1.0.

    cargo test --lib audit::formats -- --include-ignored          # writes target/report-samples
    pip install lxml jsonschema
    cargo add serde-sarif && cargo fetch                          # in an empty crate: its src/schema.json is SARIF's
    python tests/peer/formats.py --xsd junit-10.xsd --sarif-schema schema.json target/report-samples

junit-10.xsd is that of Jenkins' xunit-plugin (MIT), in its src/main/resources.

The reports of the samples are one as it is and one in which every text is hostile. More reports can be named:
`*.junit` and `*.xml` are JUnit, `*.sarif` is SARIF, `*.html` is looked through for what would run or load.
"""

import argparse
import html.parser
import json
import pathlib
import sys

import jsonschema
from lxml import etree

# Elements that the page is made of; no script, no frame, no form, no image.
ELEMENTS = set(
    """html head meta title style body header main section article footer h1 h2 h3 p b strong code small br i ul li dl
    dt dd span details summary div table caption thead tbody tfoot tr th td figure figcaption svg line text rect""".split()
)
VOID = {"meta", "br", "line"}


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.problems, self.open = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ELEMENTS:
            self.problems.append(f"element {tag}")
        for name, value in attributes:
            if name.startswith("on") or name in ("src", "href", "style"):
                self.problems.append(f"attribute {name}={value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        if tag not in ELEMENTS:
            self.problems.append(f"element {tag}")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"unexpected </{tag}>")


def problems(path, xsd, schema):
    if path.suffix in (".junit", ".xml"):
        tree = etree.parse(path, etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True))
        return [] if xsd.validate(tree) else [str(error) for error in xsd.error_log]
    if path.suffix == ".sarif":
        return [error.message[:200] for error in schema.iter_errors(json.loads(path.read_text()))]
    page = Page()
    page.feed(path.read_text())
    page.close()
    return page.problems + [f"<{tag}> is not closed" for tag in page.open]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--xsd", required=True)
    arguments.add_argument("--sarif-schema", required=True)
    arguments.add_argument("paths", nargs="+", type=pathlib.Path)
    arguments = arguments.parse_args()
    xsd = etree.XMLSchema(etree.parse(arguments.xsd))
    loaded = json.loads(pathlib.Path(arguments.sarif_schema).read_text())
    schema = jsonschema.validators.validator_for(loaded)(loaded)
    suffixes = {".junit", ".xml", ".sarif", ".html"}
    files = []
    for path in arguments.paths:
        files += sorted(path.iterdir()) if path.is_dir() else [path]
    files = [path for path in files if path.suffix in suffixes]
    failed = 0
    for path in files:
        found = problems(path, xsd, schema)
        failed += bool(found)
        print(f"{'bad' if found else 'ok ':3} {path}", *found[:5], sep="\n    " if found else " ")
    print(f"{len(files) - failed} passed, {failed} failed")
    sys.exit(bool(failed or not files))


if __name__ == "__main__":
    main()
