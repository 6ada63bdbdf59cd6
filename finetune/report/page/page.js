"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const names = all("#names li").map((item) => item.textContent);
  const make = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };
  const drawn = (tag, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  // What a mark says, beside the pointer.
  const tip = one("#tip");
  const said = (mark) => {
    if (mark.dataset.t === undefined) return mark.dataset.tip;
    const from = names[mark.dataset.t];
    const to = mark.dataset.p === "" ? "classes not shown" : names[mark.dataset.p];
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

  // Long tables and galleries show their first entries until a button shows all.
  const narrow = matchMedia("(max-width: 480px)").matches;
  const lists = all("[data-most]").map((list) => {
    const button = one(".more", (list.closest(".scroll") || list).parentElement);
    return { list, most: Math.ceil(list.dataset.most / (narrow ? 2.5 : 1)), open: false, button };
  });
  const entries = (list) => (list.tBodies ? [...list.tBodies[0].rows] : [...list.children]);
  const shorten = (part) => {
    const there = entries(part.list).filter((entry) => !entry.filtered);
    const narrowed = part.list.tBodies ? false : filtering();
    const few = part.open || narrowed ? there.length : part.most;
    for (const entry of entries(part.list)) entry.hidden = !entry.classList.contains("picked");
    for (const entry of there.slice(0, few)) entry.hidden = false;
    part.button.hidden = there.length <= part.most || narrowed;
    const number = there.length.toLocaleString("en");
    part.button.textContent = part.open ? "Show fewer" : `Show all ${number}`;
  };
  for (const part of lists) {
    part.button.addEventListener("click", () => {
      part.open = !part.open;
      shorten(part);
    });
  }

  // Tables are sorted by a click on a header.
  const valueOf = (row, column) => {
    const { dataset, textContent } = row.cells[column];
    if (dataset.v === undefined) return textContent;
    return dataset.v === "" ? null : Number(dataset.v);
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  const sort = (table, header) => {
    const column = header.cellIndex;
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const isText = rows.every((row) => row.cells[column].dataset.v === undefined);
    const before = header.getAttribute("aria-sort");
    const up = before ? before === "descending" : isText;
    for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.sort((one, two) => {
      const [a, b] = [valueOf(one, column), valueOf(two, column)];
      if (a === null || b === null) return (a === null) - (b === null); // without a value: last
      return up ? compare(a, b) : compare(b, a);
    });
    body.append(...rows);
    for (const part of lists) if (part.list === table) shorten(part);
  };
  for (const table of all("table.sortable")) {
    for (const header of all("th:not([data-plain])", table)) {
      const button = make("button", { type: "button" }, ...header.childNodes);
      button.addEventListener("click", () => sort(table, header));
      header.append(button);
    }
  }

  // The filter. Each row of the list is an image, or a pair of images; pictures belong to rows.
  const bar = one("#bar");
  for (const value of one("#class").dataset.classes.split(" ")) {
    one("#class").append(make("option", { value }, names[value]));
  }
  const rows = all("#list tbody tr").map((row) => ({
    row,
    classes: row.dataset.classes.split(" "),
    kinds: row.dataset.kinds.split(" "),
    words: row.textContent.toLowerCase(),
  }));
  const figures = all("figure[data-item]");
  const rowOf = new Map(figures.map((figure) => [figure, rows[figure.dataset.item]]));
  const galleries = lists.filter((part) => !part.list.tBodies);
  const nothing = { text: "", class: "", true: "", predicted: "", only: "" };
  let chosen = { ...nothing };
  const filtering = () => Object.values(chosen).some((value) => value !== "");
  const fits = ({ classes, kinds, words }) =>
    words.includes(chosen.text.trim().toLowerCase()) &&
    (chosen.class === "" || classes.includes(chosen.class)) &&
    (chosen.true === "" || classes[0] === chosen.true) &&
    (chosen.predicted === "" || classes[1] === chosen.predicted) &&
    (chosen.only === "" || !kinds || kinds.includes(chosen.only));

  const number = (count, noun) => {
    const ending = count === 1 ? noun : `${noun}s`.replace(/ys$/, "ies");
    return `${count.toLocaleString("en")} ${ending}`;
  };
  const chip = (text, without) => {
    const button = make("button", { type: "button", className: "chip" }, `${text} ✕`);
    button.setAttribute("aria-label", `Remove the filter ${text}`);
    button.addEventListener("click", () => choose(without));
    return button;
  };
  const chips = () => {
    const made = [];
    if (chosen.class !== "") made.push(chip(names[chosen.class], { class: "" }));
    if (chosen.true !== "") {
      const pair = `${names[chosen.true]} predicted as ${names[chosen.predicted]}`;
      made.push(chip(pair, { true: "", predicted: "" }));
    }
    const kind = [...one("#kind").options].find((option) => option.value === chosen.only);
    if (chosen.only !== "") made.push(chip(kind.text, { only: "" }));
    if (chosen.text !== "") made.push(chip(`“${chosen.text}”`, { text: "" }));
    if (made.length > 1) {
      const button = make("button", { type: "button", className: "clear" }, "clear all");
      made.push(button);
    }
    return made;
  };

  const update = () => {
    const matching = rows.filter(fits);
    const inside = new Set(matching);
    for (const item of rows) item.row.filtered = !inside.has(item);
    for (const figure of figures) figure.filtered = !inside.has(rowOf.get(figure));
    const word = chosen.text.trim().toLowerCase();
    for (const row of all("tr[data-class], tr[data-pair]")) {
      row.filtered = !row.cells[0].textContent.toLowerCase().includes(word);
      const picked = row.dataset.pair
        ? row.dataset.pair === `${chosen.true} ${chosen.predicted}`
        : [chosen.class, chosen.true, chosen.predicted].includes(row.dataset.class);
      row.classList.toggle("picked", picked);
    }
    for (const cell of all("#matrix [data-t]")) {
      const picked = cell.dataset.t === chosen.true && cell.dataset.p === chosen.predicted;
      cell.classList.toggle("picked", picked);
    }
    lists.forEach(shorten);
    for (const { list } of galleries) {
      const some = entries(list).some((figure) => !figure.filtered);
      one(".none", list.parentElement).hidden = some || !filtering();
    }
    one("#filter").value = chosen.text;
    one("#class").value = chosen.class;
    one("#kind").value = chosen.only;
    one("#chips").replaceChildren(...chips());
    const pictured = new Set(figures.map((figure) => rowOf.get(figure)));
    const shown = matching.filter((item) => pictured.has(item)).length;
    const found = filtering() ? `${matching.length.toLocaleString("en")} of ` : "";
    one("#matching").textContent =
      matching.length === 0 && filtering()
        ? "no picture matches"
        : `${found}${number(rows.length, bar.dataset.noun)}, ${number(shown, "picture")}`;
    for (const id of ["#copy", "#save"]) one(id).disabled = matching.length === 0;
    document.body.style.setProperty("--bar", `${bar.offsetHeight}px`);
    document.dispatchEvent(new CustomEvent("filtered", { detail: fits }));
  };

  // What a person has decided, on the page of suspects, is one more kind.
  document.addEventListener("decided", ({ detail }) => {
    for (const item of rows) {
      const decided = detail.has(one(".path", item.row).textContent) ? "decided" : "undecided";
      item.kinds = [...item.row.dataset.kinds.split(" "), decided];
      item.words = item.row.textContent.toLowerCase();
    }
    update();
  });

  // The address holds the filter, so that it can be kept and sent: #class=shirt
  const isName = { class: true, true: true, predicted: true };
  const address = () => {
    const pairs = Object.entries(chosen).filter(([, value]) => value !== "");
    const words = pairs.map(([key, value]) => [key, isName[key] ? names[value] : value]);
    return `#${new URLSearchParams(words)}`;
  };
  const choose = (change) => {
    chosen = { ...chosen, ...change };
    history.replaceState(null, "", filtering() ? address() : "#");
    update();
  };
  const fromAddress = () => {
    if (!location.hash.includes("=")) return;
    const given = new URLSearchParams(location.hash.slice(1));
    chosen = { ...nothing };
    for (const key of Object.keys(nothing)) {
      const value = given.get(key);
      if (value === null) continue;
      const at = names.indexOf(value);
      if (!isName[key]) chosen[key] = value;
      else if (at >= 0) chosen[key] = String(at);
      else chosen.text = value; // a class of another page: nothing matches, and the chip says why
    }
    if (chosen.true === "" || chosen.predicted === "") {
      chosen.class ||= chosen.true || chosen.predicted;
      chosen.true = chosen.predicted = "";
    }
    if (![...one("#kind").options].some((option) => option.value === chosen.only)) chosen.only = "";
    update();
  };
  addEventListener("hashchange", fromAddress);

  const pictures = one("#mistakes, #pairs");
  const goTo = (change) => {
    choose(change);
    tip.hidden = true;
    pictures.scrollIntoView({ block: "start" });
  };
  const pickClass = (at) => goTo({ class: chosen.class === at ? "" : at, true: "", predicted: "" });
  const pickCell = ({ t, p }) => {
    if (t === p) pickClass(t);
    else if (p === "") goTo({ class: t, true: "", predicted: "", only: "mistake" });
    else goTo({ class: "", true: t, predicted: p });
  };
  one("#filter").addEventListener("input", (event) => choose({ text: event.target.value }));
  one("#class").addEventListener("change", (event) => {
    choose({ class: event.target.value, true: "", predicted: "" });
  });
  one("#kind").addEventListener("change", (event) => choose({ only: event.target.value }));
  document.addEventListener("click", (event) => {
    const clear = event.target.closest(".clear");
    const cell = event.target.closest("#matrix [data-t]");
    const picked = event.target.closest("tr[data-class], tr[data-pair], text.pick");
    const opened = event.target.closest("figure[data-item] .open");
    if (clear) choose(nothing);
    else if (opened) open(opened.closest("figure"));
    else if (cell) pickCell(cell.dataset);
    else if (picked && picked.dataset.pair) {
      const [t, p] = picked.dataset.pair.split(" ");
      pickCell({ t, p });
    } else if (picked) pickClass(picked.dataset.class);
  });

  // The cells of the matrix are one stop of the tab key, from which the arrow keys step.
  const cells = all("#matrix .cell:not(.right)");
  for (const [at, cell] of cells.entries()) {
    cell.tabIndex = at === 0 ? 0 : -1;
    cell.setAttribute("role", "button");
    cell.setAttribute("aria-label", said(cell));
    cell.addEventListener("focus", () => {
      const box = cell.getBoundingClientRect();
      show(cell, box.right, box.bottom);
    });
    cell.addEventListener("blur", () => { tip.hidden = true; });
    cell.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") pickCell(cell.dataset);
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = cells[at + step];
      if (next) {
        cell.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      }
      if (step || event.key === "Enter" || event.key === " ") event.preventDefault();
    });
  }

  // Lists leave the page: paths on the clipboard, or a table as a file.
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // not allowed, or an old browser
      const field = make("textarea", { value: text });
      (one("#view[open]") || document.body).append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
  };
  const tell = (button, text) => {
    const before = (button.dataset.text ||= button.textContent);
    button.textContent = text;
    setTimeout(() => { button.textContent = before; }, 2000);
  };
  const matchingRows = () => {
    const chosenRows = new Set(rows.filter(fits).map(({ row }) => row));
    return all("#list tbody tr").filter((row) => chosenRows.has(row)); // as they are sorted
  };
  const pathsIn = (root) => all(".path", root).map((part) => part.textContent).filter(Boolean);
  one("#copy").addEventListener("click", async (event) => {
    const paths = [...new Set(matchingRows().flatMap(pathsIn))];
    await copy(`${paths.join("\n")}\n`);
    tell(event.target, `${number(paths.length, "path")} copied`);
  });
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  one("#save").addEventListener("click", (event) => {
    const lines = matchingRows().map((row) => [...row.cells].map((cell) => quoted(cell.textContent)));
    const text = [event.target.dataset.columns, ...lines.map((line) => line.join(","))].join("\n");
    const file = new Blob([`${text}\n`], { type: "text/csv" });
    const link = make("a", { href: URL.createObjectURL(file), download: `${document.title.replace(/[^\p{L}\p{N}]+/gu, "-")}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });

  // A picture, enlarged, with all that is known of it.
  const view = one("#view");
  let viewed = null;
  const visible = () => figures.filter((figure) => !figure.filtered && one(".open", figure));
  const panel = (text, content) => make("figure", {}, content, make("figcaption", {}, text));
  const photoOf = (figure) => {
    const photo = one(".photo", figure);
    return photo.src || one("image", photo).getAttribute("href");
  };
  const part = (url, box, [width, height], ...more) =>
    drawn("svg", { viewBox: box.join(" "), role: "img", "aria-label": "photo" },
      drawn("image", { href: url, width, height }), ...more);
  const photos = (figure) => {
    if (!figure.dataset.seen) {
      return all("img", figure).map((image) => {
        const large = make("img", { src: image.src, alt: image.alt });
        return panel(image.dataset.text, large);
      });
    }
    const url = photoOf(figure);
    const size = figure.dataset.size.split(" ").map(Number);
    const seen = figure.dataset.seen.split(" ").map(Number);
    const [left, top, width, height] = seen;
    const whole = left === 0 && top === 0 && width === size[0] && height === size[1];
    const frame = drawn("path", {
      class: "outside",
      d: `M0 0H${size[0]}V${size[1]}H0Z M${left} ${top}V${top + height}H${left + width}V${top}Z`,
    });
    const made = [];
    if (whole) made.push(panel("The network saw the whole photo.", part(url, [0, 0, ...size], size)));
    else {
      made.push(panel("The photo; the network did not see its pale margin.", part(url, [0, 0, ...size], size, frame)));
      made.push(panel("What the network saw.", part(url, seen, size)));
    }
    const heat = one(".heat", figure);
    if (heat) {
      made.push(panel("The same part: the brighter a region, the more it supports the predicted class.", make("img", { src: heat.src, alt: heat.alt })));
    }
    return made;
  };
  const best = (figure) => {
    if (!figure.dataset.top) return [];
    const [from, to] = rowOf.get(figure).classes;
    const lines = figure.dataset.top.split(" ").map((entry) => {
      const [at, share] = entry.split(":");
      const width = `${100 * Number(share)}%`;
      const kind = at === from ? "true" : "";
      const bar = drawn("svg", { class: "strip", width: "100%", height: 10, "aria-hidden": "true" },
        drawn("rect", { class: `bar share ${kind}`, x: 0, y: 0, width, height: 10 }));
      const name = make("td", { className: "name" }, names[at]);
      if (at === from) name.append(" (true class)");
      else if (at === to) name.append(" (predicted)");
      return make("tr", {}, name, make("td", { className: "n" }, `${(100 * share).toFixed(1)}%`),
        make("td", { className: "wide" }, bar));
    });
    return [make("table", {}, make("tbody", {}, ...lines))];
  };
  const open = (figure) => {
    viewed = figure;
    const there = visible();
    const at = there.indexOf(figure);
    one("#view-title").textContent = `${at + 1} of ${there.length}`;
    one("#view-back").disabled = at <= 0;
    one("#view-on").disabled = at + 1 >= there.length;
    one("#view-pictures").replaceChildren(...photos(figure));
    const text = one("figcaption", figure).cloneNode(true);
    one("#view-text").replaceChildren(make("p", {}, ...text.childNodes), ...best(figure));
    if (!view.open) view.showModal();
  };
  const step = (by) => {
    const next = visible()[visible().indexOf(viewed) + by];
    if (next) open(next);
  };
  one("#view-back").addEventListener("click", () => step(-1));
  one("#view-on").addEventListener("click", () => step(1));
  one("#view-close").addEventListener("click", () => view.close());
  one("#view-copy").addEventListener("click", async (event) => {
    await copy(`${pathsIn(one("#view-text")).join("\n")}\n`);
    tell(event.target, "copied");
  });
  view.addEventListener("click", (event) => { if (event.target === view) view.close(); });
  view.addEventListener("close", () => { if (viewed) one(".open", viewed).focus(); });
  view.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });

  bar.hidden = false;
  addEventListener("resize", () => document.body.style.setProperty("--bar", `${bar.offsetHeight}px`));
  document.addEventListener("DOMContentLoaded", () => {
    if (location.hash.includes("=")) fromAddress();
    else update();
  });
})();
