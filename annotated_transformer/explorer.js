// The explorer of attention maps. It finds its hosts in the page it is in, reads the
// data that is inside them, leaves no name behind and asks for nothing from elsewhere.
(() => {
  const KINDS = {
    encoder: {
      name: "encoder self-attention", queries: "source", keys: "source",
      left: "a word of the source", right: "looks at the source", verb: "looks at",
    },
    decoder: {
      name: "decoder self-attention", queries: "target", keys: "read",
      left: "the word being chosen", right: "looks at what is written",
      verb: "is chosen looking at",
    },
    cross: {
      name: "encoder-decoder attention", queries: "target", keys: "source",
      left: "the word being chosen", right: "looks at the source",
      verb: "is chosen looking at",
    },
  };
  const LEAST = 0.02; // a weight below it is not drawn
  const percent = (weight) => `${Math.round(100 * weight)} %`;

  function make(tag, attributes = {}, ...children) {
    const namespace = tag === "path" ? "http://www.w3.org/2000/svg" : null;
    const element = namespace
      ? document.createElementNS(namespace, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes))
      element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // The bytes of a kind: weights in steps of 1/255, [layer][head][query][key].
  function unpack(sentence, kind) {
    sentence.bytes ??= {};
    return (sentence.bytes[kind] ??= Uint8Array.from(
      atob(sentence.weights[kind]), (character) => character.charCodeAt(0)));
  }

  // Weights by row for one head, or for the mean of a layer's heads.
  function pieceWeights(sentence, kind, layer, head) {
    const bytes = unpack(sentence, kind), { queries, keys } = KINDS[kind];
    const rows = sentence[queries].pieces.length, columns = sentence[keys].pieces.length;
    const heads = head === sentence.heads ? [...Array(head).keys()] : [head];
    return Array.from({ length: rows }, (_, i) =>
      Array.from({ length: columns }, (_, j) => heads.reduce((sum, h) => sum
        + bytes[((layer * sentence.heads + h) * rows + i) * columns + j], 0)
        / (255 * heads.length)));
  }

  // A word's row is the mean of its pieces' rows, its column their sum.
  function join(weights, queries, keys) {
    const rows = queries.texts.map(() => keys.texts.map(() => 0));
    const sizes = queries.texts.map(() => 0);
    queries.owner.forEach((word) => { sizes[word] += 1; });
    weights.forEach((row, i) => row.forEach((weight, j) => {
      rows[queries.owner[i]][keys.owner[j]] += weight / sizes[queries.owner[i]];
    }));
    return rows;
  }

  function explore(host) {
    const root = host.attachShadow({ mode: "open" });
    root.append(host.querySelector("template").content.cloneNode(true));
    const $ = (selector) => root.querySelector(selector);
    const data = [...host.querySelectorAll("script[type='application/json']")];
    const read = data.map(() => null);
    const sentence = () =>
      (read[state.sentence] ??= JSON.parse(data[state.sentence].textContent));
    const state = { sentence: 0, kind: "cross", layer: 0, head: 0, over: null, kept: null };
    const columns = { queries: $("ol.queries"), keys: $("ol.keys") };
    let weights = [], labels = {};

    // What the page says of one word: [side, index] of KINDS' two sides.
    function sharesOf([side, index]) {
      return side === "queries" ? weights[index] : weights.map((row) => row[index]);
    }

    function tell(shown) {
      if (!shown) return "Point at a word, or move to it with the tab and arrow keys, "
        + "to see where it looks; choose it to keep it.";
      const [side, index] = shown, other = side === "queries" ? "keys" : "queries";
      const most = sharesOf(shown).map((share, i) => [share, labels[other][i]])
        .filter(([share]) => share >= 0.005).sort((a, b) => b[0] - a[0]).slice(0, 5);
      const list = most.map(([share, word]) => `${word.trim()} ${percent(share)}`);
      const verb = side === "queries" ? KINDS[state.kind].verb : "is looked at by";
      return `“${labels[side][index].trim()}” ${verb}: ${list.join(", ") || "nothing"}`;
    }

    function drawLines(shown) {
      const paths = [];
      weights.forEach((row, i) => row.forEach((weight, j) => {
        const at = { queries: i, keys: j };
        if (weight < LEAST || (shown && at[shown[0]] !== shown[1])) return;
        paths.push(make("path", {
          d: `M0 ${i + 0.5}C50 ${i + 0.5} 50 ${j + 0.5} 100 ${j + 0.5}`,
          "stroke-width": (1 + 4 * weight).toFixed(2),
          "stroke-opacity": (shown ? 0.25 + 0.75 * weight : weight).toFixed(2),
        }));
      }));
      $("svg").replaceChildren(...paths);
    }

    // Colours, shares, lines and the sentence that says it, for what is pointed at.
    function show() {
      const shown = state.over ?? state.kept;
      for (const [side, list] of Object.entries(columns)) {
        const shares = shown && shown[0] !== side ? sharesOf(shown) : [];
        [...list.querySelectorAll("button")].forEach((button, i) => {
          button.style.setProperty("--w", (shares[i] ?? 0).toFixed(3));
          button.lastChild.textContent = shares[i] >= 0.005 ? percent(shares[i]) : "";
          const is = (place) => Boolean(place && place[0] === side && place[1] === i);
          button.classList.toggle("shown", is(shown));
          button.setAttribute("aria-pressed", is(state.kept));
        });
      }
      drawLines(shown);
      $(".told").textContent = tell(shown);
    }

    function table() {
      const cells = (row) => row.map((weight) => make("td", {}, percent(weight)));
      const head = labels.keys.map((word) => make("th", { scope: "col" }, word));
      const body = weights.map((row, i) => make("tr", {},
        make("th", { scope: "row" }, labels.queries[i]), ...cells(row)));
      const caption = `${KINDS[state.kind].left} (row) ${KINDS[state.kind].right} (column)`;
      return make("table", {}, make("caption", {}, caption),
        make("thead", {}, make("tr", {}, make("td"), ...head)), make("tbody", {}, ...body));
    }

    // Everything that depends on sentence, kind, layer, head and whole words.
    function render() {
      const of = sentence(), kind = KINDS[state.kind], whole = $(".joined input").checked;
      const sides = { queries: of[kind.queries], keys: of[kind.keys] };
      weights = pieceWeights(of, state.kind, state.layer, state.head);
      if (whole) weights = join(weights, sides.queries, sides.keys);
      for (const [side, list] of Object.entries(columns)) {
        labels[side] = whole ? sides[side].texts : sides[side].pieces;
        list.replaceChildren(...labels[side].map((word, i) => make("li", {},
          make("button", { type: "button", tabindex: i ? -1 : 0, "aria-pressed": false },
            make("span", { class: "word", title: word }, word),
            make("span", { class: "share" })))));
      }
      const rows = Math.max(labels.queries.length, labels.keys.length);
      $("svg").setAttribute("viewBox", `0 0 100 ${rows}`);
      $("svg").style.height = `${1.75 * rows}rem`;
      const head = state.head === of.heads ? "mean of the heads" : `head ${state.head + 1}`;
      $(".what").textContent = kind.name[0].toUpperCase() + kind.name.slice(1)
        + `, layer ${state.layer + 1}, ${head}`;
      $(".head.queries").textContent = kind.left;
      $(".head.keys").textContent = kind.right;
      $(".scrolls").replaceChildren(...($("details").open ? [table()] : []));
      state.over = state.kept = null;
      show();
    }

    function thumbnail(of, layer, head) {
      const map = pieceWeights(of, state.kind, layer, head);
      const canvas = make("canvas", { width: map[0].length, height: map.length });
      const context = canvas.getContext("2d");
      map.forEach((row, i) => row.forEach((weight, j) => {
        context.fillStyle = `rgb(42 134 192 / ${weight})`;
        context.fillRect(j, i, 1, 1);
      }));
      return canvas;
    }

    // The heads of all layers, small; the last column is the mean of a layer's heads.
    function drawGrid() {
      const of = sentence(), cells = [make("span")];
      for (let head = 0; head <= of.heads; head++)
        cells.push(make("span", {}, head === of.heads ? "mean" : `${head + 1}`));
      for (let layer = 0; layer < of.layers; layer++) {
        cells.push(make("span", {}, `${layer + 1}`));
        for (let head = 0; head <= of.heads; head++) {
          const on = layer === state.layer && head === state.head;
          const name = head === of.heads ? "mean of the heads" : `head ${head + 1}`;
          cells.push(make("button", {
            type: "button", role: "radio", "aria-checked": on, tabindex: on ? 0 : -1,
            "aria-label": `layer ${layer + 1}, ${name}`, "data-at": `${layer} ${head}`,
          }, thumbnail(of, layer, head)));
        }
      }
      $(".grid").style.gridTemplateColumns = `auto repeat(${of.heads + 1}, auto)`;
      $(".grid").replaceChildren(...cells);
    }

    function chooseHead(layer, head, focus) {
      Object.assign(state, { layer, head });
      for (const button of $(".grid").querySelectorAll("button")) {
        const on = button.dataset.at === `${layer} ${head}`;
        button.setAttribute("aria-checked", on);
        button.tabIndex = on ? 0 : -1;
        if (on && focus) button.focus();
      }
      render();
    }

    function chooseSentence(index) {
      state.sentence = index;
      const { layers, heads } = sentence();
      Object.assign(state, { layer: layers - 1, head: heads });
      drawGrid();
      render();
    }

    // [side, index] of the word that an event is about, or null.
    function wordOf(event) {
      const item = event.target.closest?.("li");
      if (!item) return null;
      const side = item.parentElement === columns.queries ? "queries" : "keys";
      return [side, [...item.parentElement.children].indexOf(item)];
    }

    function focusWord(side, index) {
      const buttons = [...columns[side].querySelectorAll("button")];
      const at = Math.min(Math.max(index, 0), buttons.length - 1);
      buttons.forEach((button, i) => { button.tabIndex = i === at ? 0 : -1; });
      buttons[at].focus();
    }

    $("select").append(...data.map((script, i) =>
      make("option", { value: i }, `${i + 1}. ${script.dataset.line}`)));
    $("select").addEventListener("change", (event) =>
      chooseSentence(Number(event.target.value)));
    if (data.length < 2) $(".sentence").remove();
    for (const [kind, { name }] of Object.entries(KINDS)) {
      if (!(kind in sentence().weights)) continue; // a model without attention of it
      const radio = make("input", { type: "radio", name: "kind", value: kind });
      radio.checked = kind === state.kind;
      $(".kinds").append(make("label", {}, radio, name));
    }
    $(".kinds").addEventListener("change", (event) => {
      state.kind = event.target.value;
      drawGrid();
      render();
    });
    $(".joined input").addEventListener("change", render);
    $("details").addEventListener("toggle", () =>
      $(".scrolls").replaceChildren(...($("details").open ? [table()] : [])));
    $(".grid").addEventListener("click", (event) => {
      const at = event.target.closest("button")?.dataset.at;
      if (at) chooseHead(...at.split(" ").map(Number));
    });
    $(".grid").addEventListener("keydown", (event) => {
      const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1],
        ArrowLeft: [0, -1] }[event.key] ?? [0, 0];
      if (!down && !right) return;
      event.preventDefault();
      const { layers, heads } = sentence();
      chooseHead((state.layer + down + layers) % layers,
        (state.head + right + heads + 1) % (heads + 1), true);
    });
    const view = $(".view");
    view.addEventListener("pointerover", (event) => {
      state.over = wordOf(event);
      show();
    });
    view.addEventListener("pointerleave", () => { state.over = null; show(); });
    view.addEventListener("focusin", (event) => {
      if (!event.target.matches(":focus-visible")) return; // the pointer shows by itself
      state.over = wordOf(event);
      show();
    });
    view.addEventListener("focusout", () => { state.over = null; show(); });
    view.addEventListener("click", (event) => {
      const word = wordOf(event);
      if (!word) return;
      const again = state.kept && state.kept.join() === word.join();
      state.kept = again ? null : word;
      show();
    });
    view.addEventListener("keydown", (event) => {
      const word = wordOf(event);
      if (event.key === "Escape") {
        state.kept = state.over = null;
        show();
      } else if (word) {
        const [side, i] = word;
        const to = { ArrowDown: [side, i + 1], ArrowUp: [side, i - 1], Home: [side, 0],
          End: [side, Infinity], ArrowLeft: ["queries", i], ArrowRight: ["keys", i] };
        if (!to[event.key]) return;
        event.preventDefault();
        focusWord(...to[event.key]);
      }
    });
    chooseSentence(0);
  }

  function mount() {
    for (const host of document.querySelectorAll("[data-attention-explorer='1']"))
      if (!host.shadowRoot) explore(host);
  }
  if (document.readyState === "loading")
    document.addEventListener("DOMContentLoaded", mount);
  else mount();
})();
