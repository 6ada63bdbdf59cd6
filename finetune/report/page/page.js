"use strict";
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);

  // What a mark says, beside the pointer.
  const tip = one("#tip");
  const names = all("#names li").map((item) => item.textContent);
  const said = (mark) => {
    if (mark.dataset.t === undefined) return mark.dataset.tip;
    const [from, to] = [names[mark.dataset.t], names[mark.dataset.p]];
    const share = `${mark.dataset.n} of ${mark.dataset.of}`;
    return from === to ? `${from}: ${share} correct` : `${from} predicted as ${to}: ${share}`;
  };
  const show = (mark, x, y) => {
    tip.textContent = said(mark);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.width - 4))}px`;
    tip.style.top = `${y + box.height + 24 > innerHeight ? y - box.height - 8 : y + 16}px`;
  };
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest ? event.target.closest("[data-tip], [data-t]") : null;
    if (mark) show(mark, event.clientX, event.clientY);
    else tip.hidden = true;
  });
  document.addEventListener("focusin", (event) => {
    const mark = event.target.closest("[data-t]");
    if (!mark) return;
    const box = mark.getBoundingClientRect();
    show(mark, box.right, box.bottom);
  });

  // Which classes and pictures are shown: those that a word, or a cell of the matrix, names.
  const word = one("#filter");
  const chosen = one("#chosen");
  const chosenText = one("#chosen-text");
  let cell = null;
  const update = () => {
    const wanted = word ? word.value.trim().toLowerCase() : "";
    for (const row of all("tr[data-name]")) {
      row.hidden = !row.dataset.name.toLowerCase().includes(wanted);
    }
    let shown = 0;
    for (const figure of all("figure[data-words]")) {
      const fits = figure.dataset.words.toLowerCase().includes(wanted);
      const inCell = !cell || (figure.dataset.true === cell.t && figure.dataset.predicted === cell.p);
      figure.hidden = !(fits && inCell);
      if (!figure.hidden && figure.closest("#mistakes")) shown += 1;
    }
    if (!chosen) return;
    chosen.hidden = !cell;
    if (cell) {
      chosenText.textContent = `${names[cell.t]} predicted as ${names[cell.p]}: ` +
        `${shown} of ${cell.n} shown `;
    }
  };
  const choose = (mark) => {
    cell = mark.dataset.t === mark.dataset.p ? null : { ...mark.dataset };
    update();
    tip.hidden = true;
    if (cell) one("#mistakes").scrollIntoView({ behavior: "smooth", block: "start" });
  };
  if (word) word.addEventListener("input", update);
  for (const mark of all("svg [data-t]")) {
    mark.addEventListener("click", () => choose(mark));
    mark.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose(mark);
      }
    });
  }
  const clear = one("#clear");
  if (clear) clear.addEventListener("click", () => { cell = null; update(); });
})();
