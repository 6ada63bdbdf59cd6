"use strict";
(() => {
  // Decisions of a person: each photo has at most one, which is shown wherever the photo is drawn.
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const names = all("#names li").map((item) => item.textContent);
  const key = `finetune ${location.pathname} ${document.title}`;
  const groups = all(".decision");
  const rows = all("#list tbody tr");
  const pathOf = (row) => row.cells[1].textContent;
  const decisions = new Map();

  // Rows of an earlier table stay, so that a file saved here replaces it.
  for (const { dataset } of all("#earlier li")) {
    decisions.set(dataset.path, { action: dataset.action, label: dataset.label });
  }
  try {
    for (const [path, decision] of JSON.parse(localStorage.getItem(key) || "[]")) decisions.set(path, decision);
  } catch { /* the browser keeps nothing for files */ }

  const keep = () => {
    try {
      localStorage.setItem(key, JSON.stringify([...decisions]));
    } catch { /* as above */ }
  };
  const words = { keep: "kept", relabel: "relabelled", drop: "dropped" };
  const update = () => {
    for (const group of groups) {
      const decision = decisions.get(group.dataset.path);
      for (const button of all("button", group)) {
        button.setAttribute("aria-pressed", String(decision !== undefined && decision.action === button.dataset.action));
      }
      if (decision && decision.action === "relabel") fill(one("select", group), decision.label);
    }
    for (const row of rows) {
      const decision = decisions.get(pathOf(row));
      row.cells[6].textContent = decision ? [decision.action, decision.label].filter(Boolean).join(" ") : "";
    }
    const counts = { keep: 0, relabel: 0, drop: 0 };
    for (const { action } of decisions.values()) counts[action] += 1;
    const said = Object.entries(counts).filter(([, count]) => count).map(([action, count]) => `${count} ${words[action]}`);
    one("#decided").textContent = said.length ? `Decided: ${said.join(", ")}.` : "Nothing is decided yet.";
    for (const id of ["#save-decisions", "#clear-decisions"]) one(id).disabled = decisions.size === 0;
    document.dispatchEvent(new CustomEvent("decided", { detail: new Set(decisions.keys()) }));
  };
  const decide = (path, action, label) => {
    const before = decisions.get(path);
    if (before && before.action === action && before.label === label) decisions.delete(path);
    else decisions.set(path, { action, label });
  };

  // A class is chosen among all classes, which the list has only once it is used.
  const fill = (select, chosen) => {
    if (!select.filled) {
      select.filled = true;
      const first = select.value;
      for (const value of one("#class").dataset.classes.split(" ")) {
        if (value !== first) select.append(Object.assign(document.createElement("option"), { value, textContent: names[value] }));
      }
    }
    if (chosen !== undefined) select.value = String(names.indexOf(chosen));
  };
  for (const group of groups) {
    const select = one("select", group);
    for (const event of ["pointerdown", "focus", "keydown"]) select.addEventListener(event, () => fill(select));
    const relabel = () => {
      if (select.value === "") {
        fill(select);
        select.focus();
        return;
      }
      decide(group.dataset.path, "relabel", names[select.value]);
    };
    select.addEventListener("change", () => {
      decisions.delete(group.dataset.path);
      if (select.value !== "") decide(group.dataset.path, "relabel", names[select.value]);
      keep();
      update();
    });
    group.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-action]");
      if (!button) return;
      if (button.dataset.action === "relabel") relabel();
      else decide(group.dataset.path, button.dataset.action, "");
      keep();
      update();
    });
  }
  const accept = one("#accept");
  if (accept) {
    accept.addEventListener("click", () => {
      for (const figure of all("#labels figure")) {
        if (figure.hidden) continue;
        const group = one(".decision", figure);
        if (decisions.has(group.dataset.path)) continue;
        const suggested = one("select option", group).value;
        decisions.set(group.dataset.path, { action: "relabel", label: names[suggested] });
      }
      keep();
      update();
    });
  }
  one("#clear-decisions").addEventListener("click", () => {
    decisions.clear();
    keep();
    update();
  });
  const quoted = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  one("#save-decisions").addEventListener("click", () => {
    const lines = [...decisions].map(([path, { action, label }]) => [path, action, label].map(quoted).join(","));
    const file = new Blob([`path,action,label\n${lines.join("\n")}\n`], { type: "text/csv" });
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "corrections.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  document.addEventListener("DOMContentLoaded", update);
})();
