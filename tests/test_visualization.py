"""Attention as words, as drawings, and as a page that is used in a browser, offline."""

import json
import re

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from browser import Browser

from annotated_transformer import Transformer, TransformerConfig, Translator
from annotated_transformer.decoding import AttentionMaps
from annotated_transformer.tokenizer import Tokenizer
from annotated_transformer.translator import Attention
from annotated_transformer.visualization import (
    KINDS,
    AttentionPage,
    Explorer,
    arcs,
    given_words,
    head_grid,
    heat_map,
    join,
    joined,
    quantised,
    view,
    words,
)

matplotlib.use("agg")

SOURCE = ["▁The", "▁anim", "al", "▁sl", "ee", "ps", ".", "</s>"]
TARGET = ["▁Das", "▁Ti", "er", "▁schläft", ".", "</s>"]
SHAPES = {"encoder": (8, 8), "decoder": (6, 6), "cross": (6, 8)}


def made(seed=0, n_layers=2, n_heads=3, source=SOURCE, target=TARGET):
    """An attention whose weights are drawn by lot."""
    torch.manual_seed(seed)
    s, t = len(source), len(target)
    maps = AttentionMaps(
        *(
            (2 * torch.randn(n_layers, n_heads, *shape)).softmax(dim=-1)
            for shape in ((s, s), (t, t), (t, s))
        )
    )
    future = torch.ones(t, t).triu(1).bool()
    decoder = maps.decoder.masked_fill(future, 0)
    decoder = decoder / decoder.sum(-1, keepdim=True)
    maps = maps._replace(decoder=decoder)
    return Attention(list(source), ["<s>", *target[:-1]], list(target), maps)


# Words


@pytest.mark.parametrize(
    ("pieces", "texts", "owner"),
    [
        (["▁a", "b", "▁c"], ["ab", "c"], [0, 0, 1]),
        (["a", "b", "▁c"], ["ab", "c"], [0, 0, 1]),
        (["▁", "a", "▁b"], ["a", "b"], [0, 0, 1]),
        (["<s>", "a", "▁b", "</s>"], ["<s>", "a", "b", "</s>"], [0, 1, 2, 3]),
        (["▁a", ".", "</s>"], ["a", ".", "</s>"], [0, 1, 2]),
        (["▁“", "a", "”", "."], ["“", "a", "”", "."], [0, 1, 2, 3]),
        (["▁don", "'", "t", "!", "?"], ["don't", "!", "?"], [0, 0, 0, 1, 2]),
        (["▁.", ".", "."], [".", ".", "."], [0, 1, 2]),
        (["▁a", "<0xC3>", "<0xA9>"], ["aé"], [0, 0, 0]),
        (["▁a", "<0xC3>"], ["a\ufffd"], [0, 0]),
        (["▁드디어", "▁금요일", "이다"], ["드디어", "금요일이다"], [0, 1, 1]),
        ([], [], []),
    ],
)
def test_pieces_become_words(pieces, texts, owner):
    assert words(pieces) == (texts, owner)


def test_words_that_are_given():
    pieces = ["<s>", "▁didn", "'", "t", "▁go", ".", "</s>"]
    texts, owner = given_words(pieces, ["didn't", "go", "."])
    assert texts == ["<s>", "didn't", "go", ".", "</s>"]
    assert owner == [0, 1, 1, 1, 2, 3, 4]
    assert given_words(["▁a"], ["a"]) == (["a"], [0])
    bird = ["▁", "<0xF0>", "<0x9F>", "<0xA6>", "<0x9C>", "▁ü", "ber", "</s>"]
    assert given_words(bird, ["🦜", "über"]) == (
        ["🦜", "über", "</s>"],
        [0, 0, 0, 0, 0, 1, 1, 2],
    )
    assert given_words(["</s>"], []) == (["</s>"], [0])
    with pytest.raises(ValueError, match="spell 'ab' and the words 'a'"):
        given_words(["▁ab"], ["a"])
    with pytest.raises(ValueError, match="no piece begins in 'b'"):
        given_words(["▁ab"], ["a", "b"])


def test_columns_are_added_and_rows_averaged():
    weights = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    by_hand = torch.tensor([[(0.1 + 0.2 + 0.5 + 0.3) / 2, (0.7 + 0.2) / 2]])
    torch.testing.assert_close(join(weights, [0, 0], [0, 0, 1]), by_hand)
    assert torch.equal(join(weights, [0, 1], [0, 1, 2]), weights)


def test_joined_rows_still_sum_to_one():
    whole = joined(made())
    assert whole.source == ["The", "animal", "sleeps", ".", "</s>"]
    assert whole.target == ["Das", "Tier", "schläft", ".", "</s>"]
    assert whole.read == ["<s>", "Das", "Tier", "schläft", "."]
    for weights in whole.maps:
        assert weights.shape == (2, 3, 5, 5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    tier = made().maps.decoder[:, :, 1:3, 2:4].sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(whole.maps.decoder[:, :, 1, 2], tier)
    given = joined(made(), "The animal sleeps .".split(), "Das Tier schläft.".split())
    assert given.source == whole.source
    assert given.target == ["Das", "Tier", "schläft.", "</s>"]
    assert given.read == ["<s>", "Das", "Tier", "schläft."]


# Views and drawings


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_is_the_tensor_its_title_names(kind):
    attention = made()
    for layer in range(2):
        for head in (*range(3), None):
            shown = view(attention, kind, layer, head)
            stack = getattr(attention.maps, kind)[layer]
            expected = stack.mean(0) if head is None else stack[head]
            assert torch.equal(shown.weights, expected)
            which = "mean of the heads" if head is None else f"head {head + 1}"
            assert shown.title == f"{KINDS[kind]}, layer {layer + 1}, {which}"
            assert shown.weights.shape == SHAPES[kind]
            assert (len(shown.queries), len(shown.keys)) == SHAPES[kind]
            torch.testing.assert_close(shown.weights.sum(-1), torch.ones(len(expected)))
    assert view(attention, kind, -1, -1).title.endswith("layer 2, head 3")
    assert view(attention, "cross").queries == TARGET
    assert view(attention, "decoder").keys == ["<s>", *TARGET[:-1]]
    assert view(attention, "encoder").queries == SOURCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("self",), "kind is 'self': it must be one of encoder, decoder, cross"),
        (("cross", 2), "layer is 2: there are 2"),
        (("cross", -3), "layer is -3: there are 2"),
        (("cross", 0, 3), "head is 3: there are 3"),
    ],
)
def test_there_is_no_such_map(arguments, message):
    with pytest.raises(ValueError, match=message):
        view(made(), *arguments)


def labels(ticks):
    return [text.get_text() for text in ticks]


@pytest.mark.parametrize("kind", KINDS)
def test_a_heat_map_shows_its_tensor(kind):
    attention = made()
    axes = heat_map(attention, kind, 0, 2)
    (image,) = axes.images
    torch.testing.assert_close(
        torch.tensor(image.get_array()), getattr(attention.maps, kind)[0, 2]
    )
    assert image.get_clim() == (0, 1)
    queries = SOURCE if kind == "encoder" else TARGET
    keys = ["<s>", *TARGET[:-1]] if kind == "decoder" else SOURCE
    assert labels(axes.get_yticklabels()) == queries
    assert labels(axes.get_xticklabels()) == keys
    assert axes.get_title() == f"{KINDS[kind]}, layer 1, head 3"
    assert axes.get_xlabel() and axes.get_ylabel()
    plt.close("all")


def test_lines_are_as_strong_as_their_weights():
    attention = made()
    axes = arcs(attention, "cross", 1, heads=[2, 0], rows=[3])
    lines = [line for line in axes.lines if len(line.get_xdata())]
    assert len(lines) == 2 * 8
    for number, head in enumerate((2, 0)):
        weights = attention.maps.cross[1, head, 3].tolist()
        for to, (line, weight) in enumerate(
            zip(lines[8 * number :], weights, strict=False)
        ):
            start, end = line.get_ydata()
            assert (round(start), round(end)) == (3, to)
            assert line.get_alpha() == pytest.approx(weight)
            assert line.get_color() == f"C{number}"
    assert labels(axes.get_legend().get_texts()) == ["head 3", "head 1"]
    assert labels(axes.texts) == [*TARGET, *SOURCE]
    assert arcs(attention, "cross").get_title().endswith("layer 2, mean of the heads")
    plt.close("all")


def test_a_grid_has_every_head():
    attention = made()
    figure = head_grid(attention, "decoder")
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert len(shown) == 6
    for number, weights in enumerate(shown):
        torch.testing.assert_close(
            torch.tensor(weights), attention.maps.decoder[number // 3, number % 3]
        )
    with pytest.raises(ValueError, match="kind is 'all'"):
        head_grid(attention, "all")
    plt.close("all")


# The data of the explorer


def test_rows_keep_their_sums_when_they_are_rounded():
    torch.manual_seed(0)
    for scale in (0.1, 1, 4, 30):
        weights = (scale * torch.randn(50, 37)).softmax(dim=-1)
        steps = quantised(weights)
        assert steps.dtype == torch.uint8
        assert (steps.sum(dim=-1) == 255).all()
        assert ((steps / 255 - weights).abs() < 1 / 255).all()
    assert quantised(torch.zeros(3)).tolist() == [0, 0, 0]
    assert quantised(torch.tensor([0.0, 1.0, 0.0])).tolist() == [0, 255, 0]


def size_of_a_long_one():
    thirty = [f"▁word{i}" for i in range(30)]
    long = made(0, 6, 8, [*thirty, "</s>"], [*thirty, "</s>"])
    return len(Explorer([long])._repr_html_().encode()) / 1000


def test_six_layers_and_thirty_pieces_are_below_300_kb():
    assert 180 < size_of_a_long_one() < 220, "KB: the limit is 300"


def test_the_same_attention_gives_the_same_page():
    explorer = Explorer([made()])
    assert explorer._repr_html_() == explorer._repr_html_()
    assert repr(explorer) == "Explorer of 1 sentence(s)"
    with pytest.raises(ValueError, match="no sentences"):
        Explorer([])


def test_a_model_can_be_explored():
    lines = ["A dog runs.", "Ein Hund rennt."]
    tokenizer = Tokenizer.train(lines, 280)
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, "max_length": 120}
    model = Transformer(TransformerConfig(tokenizer.vocab_size, **sizes))
    attention = Translator(model, tokenizer).attention(*lines)
    text = Explorer([attention])._repr_html_()
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text)
    data = json.loads(found[1])
    assert data["target"]["texts"] == ["Ein", "Hund", "rennt", ".", "</s>"]
    assert "<p>A dog runs. → Ein Hund rennt.<br>" in text


# The explorer in a browser


class Shown:
    """One explorer of a page, found and used as a reader would."""

    def __init__(self, browser, number=0):
        self.browser = browser
        host = f"document.querySelectorAll('[data-attention-explorer]')[{number}]"
        self.root = f"{host}.shadowRoot"

    def run(self, expression):
        return self.browser.run(f"((root) => {expression})({self.root})")

    def text(self, selector):
        return self.run(f"root.querySelector({json.dumps(selector)}).textContent")

    def all(self, selector):
        return self.run(
            f"[...root.querySelectorAll({json.dumps(selector)})]"
            ".map((e) => e.textContent)"
        )

    def shares(self, side):
        texts = self.all(f"ol.{side} .share")
        return [int(text.split()[0]) / 100 if text else 0.0 for text in texts]

    def at(self, selector, number=0):
        """Where the middle of an element is; it is scrolled into sight."""
        return self.run(
            f"""{{
              const e = root.querySelectorAll({json.dumps(selector)})[{number}];
              e.scrollIntoView({{block: "center"}});
              const box = e.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }}"""
        )

    def point(self, selector, number=0, click=False):
        x, y = self.at(selector, number)
        mouse = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.browser.call("Input.dispatchMouseEvent", type=kind, **mouse)

    def touch(self, selector, number=0):
        x, y = self.at(selector, number)
        points = [{"x": x, "y": y}]
        call = self.browser.call
        call("Input.dispatchTouchEvent", type="touchStart", touchPoints=points)
        call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, *keys):
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for key in keys:
            stroke = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
            if key in ("Enter", " "):
                stroke["text"] = "\r" if key == "Enter" else " "
            for kind in ("keyDown", "keyUp"):
                self.browser.call("Input.dispatchKeyEvent", type=kind, **stroke)

    def focused(self):
        return self.run("root.activeElement?.textContent.trim() ?? null")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


@pytest.fixture(params=[1280, 390])
def width(request):
    return request.param


ATTENTIONS = [made(0), made(1, 3, 2, ["▁A", "▁b", "</s>"], ["▁C", "</s>"])]


def open_page(browser, folder, *bodies, width=1280):
    head = '<!doctype html><meta charset="utf-8">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    path = folder / "page.html"
    path.write_text(head + "".join(bodies), "utf-8")
    browser.resize(width)
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
    browser.visit(path.as_uri())
    return Shown(browser)


@pytest.fixture
def shown(browser, tmp_path, width):
    html = Explorer(ATTENTIONS)._repr_html_()
    return open_page(browser, tmp_path, html, html, width=width)


def expected(attention, kind, layer, head=None, whole=True):
    return view(joined(attention) if whole else attention, kind, layer, head).weights


def assert_shares(found, weights):
    assert found == pytest.approx(weights.tolist(), abs=0.015)
    assert max(found) > 0


def test_it_opens_quietly_and_fits(shown, browser, width):
    assert browser.complaints == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert (
        shown.text(".what") == "Encoder-decoder attention, layer 2, mean of the heads"
    )
    assert shown.all("ol.queries .word") == joined(ATTENTIONS[0]).target
    assert shown.all("ol.keys .word") == joined(ATTENTIONS[0]).source
    assert "Point at a word" in shown.text(".told")
    assert shown.run("root.querySelectorAll('path').length") > 5
    assert len(shown.all(".grid button")) == 2 * (3 + 1)


def test_the_pointer_shows_where_a_word_looks(shown):
    weights = expected(ATTENTIONS[0], "cross", 1)
    shown.point("ol.queries button", 1)
    assert_shares(shown.shares("keys"), weights[1])
    told = shown.text(".told")
    place, most = int(weights[1].argmax()), weights[1].max().item()
    start = f"“Tier” is chosen looking at: {joined(ATTENTIONS[0]).source[place]} "
    assert told.startswith(start) and abs(int(told.split()[6]) - 100 * most) < 1.5
    shown.point("ol.keys button", 2)
    assert_shares(shown.shares("queries"), weights[:, 2])
    assert shown.text(".told").startswith("“sleeps” is looked at by: ")
    shown.point("h1, .what")
    assert shown.shares("keys") == [0] * 5 and "Point at" in shown.text(".told")


def test_a_click_keeps_a_word_until_it_is_let_go(shown):
    shown.point("ol.queries button", 1, click=True)
    shown.point(".what")
    kept = shown.text(".told")
    assert kept.startswith("“Tier”")
    assert shown.run("root.querySelectorAll('[aria-pressed=true]').length") == 1
    shown.point("ol.queries button", 2)
    assert shown.text(".told").startswith("“schläft”")
    shown.point(".what")
    assert shown.text(".told") == kept
    shown.point("ol.queries button", 1, click=True)
    shown.point(".what")
    assert "Point at" in shown.text(".told")


def test_a_touch_chooses(shown, browser, width):
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        shown.touch("ol.queries button", 1)
        weights = expected(ATTENTIONS[0], "cross", 1)
        assert_shares(shown.shares("keys"), weights[1])
        shown.touch("ol.keys button", 0)
        assert_shares(shown.shares("queries"), weights[:, 0])
        shown.touch(".grid button", 1)
        assert shown.text(".what").endswith("layer 1, head 2")
    finally:
        browser.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_the_keyboard_reaches_everything(shown, browser):
    """Tab from the sentence on: attention, head, whole words, words, words, table."""
    shown.run("root.querySelector('select').focus()")
    shown.press("ArrowDown")
    assert shown.all("ol.queries .word") == ["C", "</s>"]
    assert shown.text(".what").endswith("layer 3, mean of the heads")
    shown.press("ArrowUp", "Tab", "ArrowLeft")
    assert shown.text(".what").startswith("Decoder self-attention, layer 2, mean")
    assert shown.all("ol.queries .word") == joined(ATTENTIONS[0]).target
    assert shown.all("ol.keys .word") == joined(ATTENTIONS[0]).read
    shown.press("ArrowLeft")
    assert shown.text(".what").startswith("Encoder self-attention, layer 2, mean")
    shown.press("Tab")
    assert shown.run("root.activeElement.ariaLabel") == "layer 2, mean of the heads"
    shown.press("ArrowRight", "ArrowDown")
    assert shown.text(".what") == "Encoder self-attention, layer 1, head 1"
    assert shown.run("root.activeElement.ariaLabel") == "layer 1, head 1"
    shown.press("Tab", " ")
    assert shown.all("ol.keys .word") == SOURCE
    shown.press("Tab", "ArrowDown", "ArrowDown")
    assert shown.focused() == "al"
    weights = expected(ATTENTIONS[0], "encoder", 0, 0, whole=False)
    assert_shares(shown.shares("keys"), weights[2])
    assert shown.text(".told").startswith("“al” looks at: ")
    shown.press("ArrowRight", "End")
    assert_shares(shown.shares("queries"), weights[:, -1])
    shown.press("Home", "ArrowUp", "ArrowLeft", "Enter", "Tab", "Tab")
    assert shown.text(".told").startswith("“▁The” looks at: ")
    assert shown.focused() == "All weights as a table"
    shown.press("Enter")
    browser.wait_for(f"{shown.root}.querySelector('td') !== null", "the table")
    cells = [int(text.split()[0]) / 100 for text in shown.all("td") if text]
    assert cells == pytest.approx(weights.flatten().tolist(), abs=0.015)
    assert shown.all("thead th") == shown.all("tbody th") == SOURCE
    assert shown.text("caption").startswith("a word of the source (row)")


def test_escape_lets_go(shown):
    shown.point("ol.queries button", 1, click=True)
    shown.press("Escape")
    shown.point(".what")
    assert "Point at" in shown.text(".told")


def test_two_on_a_page_do_not_meet(shown, browser):
    other = Shown(browser, 1)
    shown.point(".kinds input", 0, click=True)
    assert shown.text(".what").startswith("Encoder self")
    assert other.text(".what").startswith("Encoder-decoder")
    other.point(".kinds input", 1, click=True)
    assert shown.run("root.querySelector('.kinds input:checked').value") == "encoder"
    assert other.run("root.querySelector('.kinds input:checked').value") == "decoder"


def test_a_model_without_self_attention(browser, tmp_path):
    """A recurrent one looks at the source alone, and only that can be chosen."""
    seen = made()
    none = {kind: torch.empty(0, 0, *SHAPES[kind]) for kind in ("encoder", "decoder")}
    seen = seen._replace(maps=seen.maps._replace(**none))
    with pytest.raises(ValueError, match="layer is -1: there are 0"):
        heat_map(seen, "encoder")
    shown = open_page(browser, tmp_path, Explorer([seen])._repr_html_())
    assert shown.all(".kinds label") == ["encoder-decoder attention"]
    shown.point("ol.queries button", 0)
    weights = expected(seen, "cross", 1)
    assert_shares(shown.shares("keys"), weights[0])


def test_it_leaves_nothing_behind(shown, browser, tmp_path, width):
    names = set(browser.run("Object.getOwnPropertyNames(window)"))
    ids = browser.run("[...document.querySelectorAll('[id]')].length")
    assert ids == shown.run("root.querySelectorAll('[id]').length") == 0
    open_page(browser, tmp_path, "<p>nothing</p>", width=width)
    assert names == set(browser.run("Object.getOwnPropertyNames(window)"))


# Text against its ground inside the explorer, by the formula of WCAG 2.
CONTRAST = """(() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const blend = (top, ground) => top.slice(0, 3).map(
    (x, i) => x * (top[3] ?? 1) + ground[i] * (1 - (top[3] ?? 1)));
  const ground = (e) => {
    const layers = [];
    for (; e; e = e.parentElement ?? e.getRootNode().host)
      layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reduceRight((below, layer) => blend(layer, below), [255, 255, 255]);
  };
  const light = (rgb) => rgb.map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  return Math.min(...[...root.querySelectorAll("*")]
    .filter((e) => e.children.length === 0 && e.textContent.trim()
                   && e.checkVisibility() && !e.closest("style, select"))
    .map((e) => {
      const under = ground(e), own = blend(parse(getComputedStyle(e).color), under);
      const [a, b] = [light(own), light(under)];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }));
})()"""


@pytest.mark.parametrize(
    "theme",
    ["color: #323232; background: #ffffff", "color: #ced6dd; background: #14181e"],
)
def test_it_is_legible_on_a_light_and_a_dark_page(browser, tmp_path, theme):
    weights = torch.eye(8)[[0, 1, 2, 3, 4, 7]].expand(2, 3, 6, 8)
    certain = made()._replace(maps=made().maps._replace(cross=weights))
    style = f"<style>html {{ {theme} }}</style>"
    shown = open_page(browser, tmp_path, style, Explorer([certain])._repr_html_())
    shown.point("ol.queries button", 0, click=True)
    assert shown.shares("keys")[0] == 1
    assert shown.run(CONTRAST) >= 4.5


def test_it_mounts_where_a_notebook_puts_it(browser, tmp_path):
    """Markup set as a string, its scripts made anew, all of it outside the page."""
    shown = open_page(browser, tmp_path, "<main></main>")
    html = json.dumps(Explorer([made()])._repr_html_())
    browser.run(
        f"""{{
          const output = document.createElement("div");
          output.innerHTML = {html};
          for (const old of output.querySelectorAll("script")) {{
            const script = document.createElement("script");
            for (const {{name, value}} of old.attributes)
              script.setAttribute(name, value);
            script.textContent = old.textContent;
            old.replaceWith(script);
          }}
          document.querySelector("main").append(output);
        }}"""
    )
    assert browser.complaints == []
    shown.point("ol.queries button", 1)
    assert shown.text(".told").startswith("“Tier”")
    assert shown.run("root.querySelector('select')") is None


def test_a_page_can_be_opened_before_it_is_whole(browser, tmp_path):
    path = tmp_path / "out.html"
    page = AttentionPage(path)
    for attention in ATTENTIONS:
        page.add(attention)
    browser.resize(1280)
    browser.visit(path.as_uri())
    assert browser.complaints == []
    assert Shown(browser).all("option") == ["1. The animal sleeps.", "2. A b"]
    page.__exit__()
    assert path.read_text("utf-8").endswith("</div>\n")
    with pytest.raises(FileExistsError):
        AttentionPage(path)


def test_text_of_a_reader_is_not_markup(browser, tmp_path):
    """A piece may hold anything: the end of a script, an element, a quote."""
    source = ["▁</script>", "▁<img", '▁"onerror=x">', "▁&amp;", "▁<!--", "</s>"]
    attention = made(source=source)
    shown = open_page(browser, tmp_path, Explorer([attention, made()])._repr_html_())
    assert browser.complaints == []
    assert browser.run("document.images.length") == 0
    assert shown.all("ol.keys .word") == [p.replace("▁", "") for p in source]
    assert shown.all("option")[0] == '1. </script> <img "onerror=x"> &amp; <!--'
    assert shown.run("root.querySelectorAll('img').length") == 0


def test_without_scripts_there_is_text(browser, tmp_path):
    try:
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        open_page(browser, tmp_path, Explorer(ATTENTIONS)._repr_html_())
        text = browser.run("document.body.innerText")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert text.startswith("The animal sleeps. → Das Tier schläft.\nEncoder-decoder")
    weights = expected(ATTENTIONS[0], "cross", -1)
    place = int(weights[2].argmax())
    word = joined(ATTENTIONS[0]).source[place]
    assert f"schläft: {word} ({weights[2, place]:.0%})" in text
    assert "weights" not in text and "{" not in text
