"""What the site has beside the pages in docs/: the README and its like, and the reference, a page a package."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "norton_det"
OUTSIDE = {
    "README.md": "index.md",
    "datasets/README.md": "datasets.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the site by the file of the repository that they are made from."""
LINK = re.compile(r"\[([^\]]*)\]\((?:\.\./|docs/)?([\w./-]+)(#[^)]*|)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; mkdocs calls this."""
    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for package in sorted(path.parent for path in PACKAGE.rglob("__init__.py")):
        name = ".".join(package.relative_to(ROOT).parts)
        page = "index" if package == PACKAGE else name
        files.append(File.generated(config, f"reference/{page}.md", content=reference(package, name)))
    return files


def reference(package: Path, name: str) -> str:
    """What mkdocstrings makes the reference of a package's modules from."""
    modules = [f"::: {name}.{path.stem}" for path in sorted(package.glob("*.py")) if path.stem != "__init__"]
    return "\n\n".join([f"# {name}", *modules])


def on_page_markdown(markdown: str, files: Files, **_: object) -> str:
    """Lead links to where their targets are on the site; a link to a file that is not on it keeps its text alone."""

    def lead(link: re.Match[str]) -> str:
        text, target, anchor = link.groups()
        page = OUTSIDE.get(target, target)
        if files.get_file_from_path(page):
            return f"[{text}]({page}{anchor})"
        return text if (ROOT / target).exists() else link[0]

    return LINK.sub(lead, markdown)
