"""Pages of the site that are not in docs/: the README as its start, and the reference, a page a package."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "norton_det"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; mkdocs calls this."""
    readme = (ROOT / "README.md").read_text().replace("](docs/", "](").replace("](datasets/README", "](datasets")
    files.append(File.generated(config, "index.md", content=readme))
    files.append(File.generated(config, "datasets.md", abs_src_path=str(ROOT / "datasets/README.md")))
    for package in sorted(path.parent for path in PACKAGE.rglob("__init__.py")):
        name = ".".join(package.relative_to(ROOT).parts)
        page = "index" if package == PACKAGE else name
        files.append(File.generated(config, f"reference/{page}.md", content=reference(package, name)))
    return files


def reference(package: Path, name: str) -> str:
    """What mkdocstrings makes the reference of a package's modules from."""
    modules = [f"::: {name}.{path.stem}" for path in sorted(package.glob("*.py")) if path.stem != "__init__"]
    return "\n\n".join([f"# {name}", *modules])
