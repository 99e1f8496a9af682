// A page opened from disk may not read other pages, so search results come without excerpts there.
if (window.location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// A formula in running text that is wider than its paragraph scrolls in its own place.
function markWideFormulas() {
  for (const formula of document.querySelectorAll("mjx-container:not([display])")) {
    formula.classList.remove("wide");
    const block = formula.closest("p, li, td, th, dd, figcaption, h1, h2, h3, summary");
    const drawn = formula.querySelector("svg");
    if (block && drawn) {
      formula.classList.toggle("wide", drawn.getBoundingClientRect().width > block.clientWidth);
    }
  }
}

window.addEventListener("load", () => {
  window.MathJax?.startup?.promise.then(markWideFormulas);
});
window.addEventListener("resize", markWideFormulas);
