"""The built book as a reader opens it: from disk, no network, wide and narrow."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import Browser

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book" / "_build" / "html"
WIDTHS = (1280, 390)

# What one look at a page tells. `.math` is what the builder marked as mathematics.
LOOK = """
((width) => {
  const scrolls = (e) => e && (
    /auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const sticksOut = (e) => e.getBoundingClientRect().right > width + 1
    && !e.closest("svg, mjx-assistive-mml") && !scrolls(e.parentElement);
  const math = [...document.querySelectorAll("main .math")];
  const images = [...document.querySelectorAll("main img")];
  return {
    formulas: math.length,
    unrendered: math.filter((e) => !e.querySelector("mjx-container svg"))
                    .map((e) => e.textContent.slice(0, 60)),
    errors: [...document.querySelectorAll("mjx-merror, [data-mml-node=merror]")]
                    .map((e) => e.closest(".math")?.textContent.slice(0, 60)),
    leftovers: (document.querySelector("main").innerText.match(/^#\\| ?\\w+/gm) || []),
    broken: images.filter((e) => !(e.complete && e.naturalWidth))
                    .map((e) => e.src),
    mute: images.filter((e) => !e.alt).map((e) => e.src),
    overflow: document.documentElement.scrollWidth - width,
    outside: [...document.querySelectorAll(".bd-article *")].filter(sticksOut)
                    .map((e) => e.outerHTML.slice(0, 80)),
  };
})
"""

# Colours that fade into each other would be measured half-way.
STILL = """
document.head.append(Object.assign(document.createElement("style"),
  {textContent: "* { transition: none !important; }"}))
"""

# The worst contrast between text and its ground, by the formula of WCAG 2.
CONTRAST = """
(() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const blend = (top, ground) => top.slice(0, 3).map(
    (x, i) => x * (top[3] ?? 1) + ground[i] * (1 - (top[3] ?? 1)));
  const ground = (e) => {
    const layers = [];
    for (; e; e = e.parentElement)
      layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reduceRight((below, layer) => blend(layer, below), [255, 255, 255]);
  };
  const light = (rgb) => rgb.map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [];
  const walker = document.createTreeWalker(
    document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const e = node.parentElement;
    if (!node.textContent.trim() || !e.checkVisibility() || e.closest("svg")) continue;
    const style = getComputedStyle(e), under = ground(e);
    const [a, b] = [light(blend(parse(style.color), under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5)
      faint.push(`contrast ${ratio.toFixed(2)}: ${node.data.trim().slice(0, 30)}`);
  }
  return [...new Set(faint)];
})()
"""


class Anchors(HTMLParser):
    """The ids of a page and the addresses it links to."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.update(filter(None, (values.get("id"), values.get("name"))))
        if tag == "a" and values.get("href"):
            self.links.add(values["href"])


@pytest.fixture(scope="module")
def pages() -> list[Path]:
    found = sorted(BOOK.rglob("*.html"))
    found = [page for page in found if "_static" not in page.parts]
    if not found:
        pytest.fail(f"no built book in {BOOK}: run `make book`")
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_opens_without_a_network(pages, browser, width):
    browser.resize(width)
    problems, formulas = [], 0
    for page in pages:
        if page == BOOK / "index.html":  # leads on to the front page at once
            continue
        name = page.relative_to(BOOK)
        browser.visit(page.as_uri())
        look = browser.run(f"({LOOK})({width})")
        formulas += look["formulas"]
        problems += [f"{name}: {complaint}" for complaint in browser.complaints]
        problems += [f"{name}: not rendered: {text}" for text in look["unrendered"]]
        problems += [f"{name}: wrong formula: {text}" for text in look["errors"]]
        problems += [f"{name}: an export marker: {text}" for text in look["leftovers"]]
        problems += [f"{name}: no picture at {source}" for source in look["broken"]]
        problems += [f"{name}: no alt text for {source}" for source in look["mute"]]
        if look["overflow"] > 0:
            problems.append(f"{name}: {look['overflow']} px wider than the window")
        problems += [f"{name}: sticks out: {text}" for text in look["outside"][:3]]
        browser.run(STILL)
        for theme in ("light", "dark"):
            browser.run(f"document.documentElement.dataset.theme = '{theme}'")
            problems += [f"{name}, {theme}: {text}" for text in browser.run(CONTRAST)]
    assert not problems, "\n".join(problems)
    assert formulas > 0


def test_the_first_page_leads_on(browser):
    browser.visit((BOOK / "index.html").as_uri())
    browser.wait_for("location.pathname.endsWith('book/intro.html')", "the front page")
    assert not browser.complaints


def test_a_page_left_while_it_is_asked_is_no_error(browser, tmp_path):
    """Mathematics that never comes holds the question until the page leads on."""
    (tmp_path / "first.html").write_text(
        "<script>window.MathJax = {startup: {promise: new Promise(() => {})}};"
        "setTimeout(() => location.replace('second.html'), 200);</script>"
    )
    (tmp_path / "second.html").write_text("<p>here</p>")
    browser.visit((tmp_path / "first.html").as_uri())
    assert browser.run("document.body.innerText") == "here"


def test_search_works_from_disk(browser):
    browser.resize(1280)
    browser.visit((BOOK / "search.html").as_uri() + "?q=attention")
    browser.wait_for(
        "document.querySelectorAll('#search-results li a').length > 0"
        " && /found \\d+ page|finished/i.test("
        "document.querySelector('#search-results').innerText)",
        "results for 'attention'",
    )
    found = browser.run(
        "[...document.querySelectorAll('#search-results li a')].map((a) => a.href)"
    )
    assert any("attention" in address for address in found)
    assert not browser.complaints


def test_dark_mode_turns_the_page_dark(browser):
    browser.resize(1280)
    browser.visit((BOOK / "book" / "intro.html").as_uri())
    ground = "getComputedStyle(document.body).backgroundColor"
    theme = "document.documentElement.dataset.theme"
    seen = {}
    for _ in range(3):  # automatic, light and dark take turns
        browser.run("document.querySelector('.theme-switch-button').click()")
        seen[browser.run(theme)] = browser.run(ground)
    assert set(seen) == {"light", "dark"}
    light, dark = ([int(x) for x in re.findall(r"\d+", seen[t])] for t in seen)
    brightness = dict(zip(seen, (sum(light), sum(dark)), strict=True))
    assert brightness["dark"] < 200 < 600 < brightness["light"]


def test_links_inside_the_book_lead_somewhere(pages):
    parsed = {page: Anchors(page.read_text(encoding="utf-8")) for page in pages}
    dead = []
    for page, anchors in parsed.items():
        for link in anchors.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (
                (page.parent / unquote(parts.path)).resolve() if parts.path else page
            )
            name = f"{page.relative_to(BOOK)} → {link}"
            if not target.is_file():
                dead.append(name)
            elif parts.fragment and target in parsed:
                if unquote(parts.fragment) not in parsed[target].ids:
                    dead.append(name)
    assert not dead, "\n".join(dead)


def test_nothing_is_loaded_from_elsewhere(pages):
    loads = re.compile(
        r"<(?:script|link|img|iframe|source|video)\b[^>]*?"
        r"(?:src|href)=[\"'](?:https?:)?//[^\"']+"
    )
    outside = [
        f"{page.relative_to(BOOK)}: {found}"
        for page in pages
        for found in loads.findall(page.read_text(encoding="utf-8"))
        if 'rel="canonical"' not in found
    ]
    assert not outside, "\n".join(outside)
