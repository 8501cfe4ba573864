"""Writes HTML: tables, plots and pictures, and the page that holds them, which loads nothing from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from norton_det.report.pictures import Pair


@dataclass(frozen=True)
class Section:
    """Holds a section of the page.

    A section without `html` is left out, and the page names in its place `source`, the command that makes what it
    needs. On a large screen two sections stand side by side, unless they are `wide`.
    """

    title: str
    html: str
    source: str
    wide: bool = False

    @property
    def anchor(self) -> str:
        """Return the title as an id."""
        return self.title.lower().replace(" ", "-")


@dataclass(frozen=True)
class Fact:
    """Holds a number to be seen first: its label, its value, and what it is compared with."""

    label: str
    value: str
    comparison: str = ""


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the whole page."""
    shown = [section for section in sections if section.html]
    missing = [section for section in sections if not section.html]
    links = "".join(f'<a href="#{escape(s.anchor)}">{escape(s.title)}</a>' for s in shown)
    body = "".join(
        f'<section id="{escape(s.anchor)}" class="{"wide" if s.wide else "narrow"}">'
        f"<h2>{escape(s.title)}</h2>{s.html}</section>\n"
        for s in shown
    )
    left_out = "".join(f"<li>{escape(s.title)}: <code>{escape(s.source)}</code></li>" for s in missing)
    footer = (
        '<footer class="missing"><p>Not in this report, with the command that makes what it needs:</p>'
        f"<ul>{left_out}</ul></footer>\n"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{(files(__package__) / 'style.css').read_text('utf-8')}</style>\n"
        f"</head>\n<body>\n<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav>{links}</nav></header>\n"
        f"<main>\n{body}</main>\n" + (footer if missing else "") + "</body>\n</html>\n"
    )


def facts(items: Sequence[Fact]) -> str:
    """Return numbers side by side."""
    return '<dl class="facts">' + "".join(
        f"<div><dt>{escape(item.label)}</dt><dd>{escape(item.value)}</dd><dd>{escape(item.comparison)}</dd></div>"
        for item in items
    ) + "</dl>"  # fmt: skip


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], told: str | None = None) -> str:
    """Return a table whose first column names the rows; the row named `told` is emphasised."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for name, *cells in rows:
        mark = ' class="told"' if name == told else ""
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr{mark}><th scope="row">{escape(name)}</th>{values}</tr>')
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def plots(*figures: tuple[str, str]) -> str:
    """Return plots, each an SVG and its caption, side by side if there is room."""
    return '<div class="plots">' + "".join(
        f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" for svg, caption in figures
    ) + "</div>"  # fmt: skip


def pictures(pairs: Sequence[Pair], titles: tuple[str, str] = ("ground truth", "predictions")) -> str:
    """Return pairs of images, side by side, under the two titles."""
    first, second = map(escape, titles)
    return '<div class="pairs">' + "".join(
        f'<figure><img src="{pair.truth}" alt="{first}, image {escape(str(pair.image_id))}">'
        f'<img src="{pair.predictions}" alt="{second}, image {escape(str(pair.image_id))}">'
        f"<figcaption><span>{first}, image {escape(str(pair.image_id))}</span><span>{second}</span></figcaption>"
        "</figure>"
        for pair in pairs
    ) + "</div>"  # fmt: skip


def note(text: str) -> str:
    """Return a paragraph that explains."""
    return f'<p class="note">{escape(text)}</p>'


def folded(title: str, html: str) -> str:
    """Return a block that opens when its title is clicked."""
    return f"<details><summary>{escape(title)}</summary>{html}</details>"
