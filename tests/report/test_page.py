"""The page's HTML: what comes from files is text, never markup; what is missing is said."""

from html.parser import HTMLParser

from norton_det.report.page import Fact, Section, facts, folded, note, plots, render, table

HOSTILE = "<script>alert(1)</script>\" onload='x' &amp;"


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def test_text_from_files_stays_text():
    html = "".join(
        [
            facts([Fact(HOSTILE, HOSTILE, HOSTILE)]),
            table([HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], told=HOSTILE),
            plots(("<svg></svg>", HOSTILE)),
            folded(HOSTILE, note(HOSTILE)),
        ]
    )
    page = Elements(render(HOSTILE, HOSTILE, [Section(HOSTILE, html, HOSTILE), Section(HOSTILE, "", HOSTILE)]))
    assert "script" not in page.tags and "onload" not in page.attributes
    shown = [text for text in page.texts if "alert" in text]
    assert len(shown) == 17 and all(text.removesuffix(": ") == HOSTILE for text in shown)


def test_a_section_without_data_is_left_out_and_its_command_is_named():
    sections = [Section("Latency", "", "norton-det benchmark"), Section("Size by part", "<p>small</p>", "x")]
    page = render("run", "", sections)
    assert '<section id="size-by-part"' in page and '<a href="#size-by-part">' in page
    assert 'id="latency"' not in page and "#latency" not in page
    assert "<li>Latency: <code>norton-det benchmark</code></li>" in page
    assert "Not in this report" not in render("run", "", sections[1:])


def test_the_run_that_is_told_is_emphasised():
    html = table(["run", "AP"], [["a", "1"], ["b", "2"]], told="b")
    assert '<tr><th scope="row">a</th>' in html and '<tr class="told"><th scope="row">b</th>' in html
