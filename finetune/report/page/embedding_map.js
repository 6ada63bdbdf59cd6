(() => {
  const one = (selector) => document.querySelector(selector);
  const map = one(".map > svg");
  if (!map) return; // the map has no points

  // The image under the pointer or the keyboard.
  const REACH = { mouse: 14, touch: 28 }; // pixels
  const card = one("#card");
  const names = [...document.querySelectorAll("#names li")].map((item) => item.textContent);
  const mistakesFirst = [".wrong", ".fine"].flatMap((kind) => [...map.querySelectorAll(kind)]);
  const points = mistakesFirst.map((mark) => {
    const box = mark.getBBox();
    return { mark, x: box.x + box.width / 2, y: box.y + box.height / 2 };
  });
  const scale = (drawn) => drawn.width / map.viewBox.baseVal.width;
  let shown = null;
  const hide = () => {
    if (shown) shown.mark.classList.remove("near");
    shown = null;
    card.hidden = true;
  };
  const show = (point) => {
    if (point === shown) return;
    hide();
    shown = point;
    point.mark.classList.add("near");
    const photo = new Image();
    photo.src = point.mark.dataset.photo;
    photo.alt = "";
    const text = document.createElement("div");
    const [from, to] = [names[point.mark.dataset.true], names[point.mark.dataset.predicted]];
    const bold = (word) => Object.assign(document.createElement("b"), { textContent: word });
    text.append(bold(from));
    if (to !== from) {
      const wrong = bold(to);
      wrong.className = "no";
      text.append(" predicted as ", wrong);
    } else {
      text.append(", correct");
    }
    text.append(document.createElement("br"), point.mark.dataset.path);
    card.replaceChildren(photo, text);
    card.hidden = false;
    const drawn = map.getBoundingClientRect();
    const [x, y] = [point.x * scale(drawn), point.y * scale(drawn)];
    const box = card.getBoundingClientRect();
    card.style.left = `${Math.max(0, Math.min(x + 14, drawn.width - box.width))}px`;
    const below = y < drawn.height / 2;
    card.style.top = `${below ? y + 14 : y - box.height - 14}px`;
  };
  const nearest = (event) => {
    const drawn = map.getBoundingClientRect();
    const [x, y] = [event.clientX - drawn.left, event.clientY - drawn.top];
    let [best, least] = [null, (REACH[event.pointerType] ?? REACH.mouse) ** 2];
    for (const point of points) {
      if (point.mark.classList.contains("faded")) continue;
      const distance = (point.x * scale(drawn) - x) ** 2 + (point.y * scale(drawn) - y) ** 2;
      if (distance < least) [best, least] = [point, distance];
    }
    return best;
  };
  const at = (event) => {
    const point = nearest(event);
    if (point) show(point);
    else hide();
  };
  map.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") at(event); });
  map.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hide(); });
  document.addEventListener("click", (event) => {
    if (map.contains(event.target)) at(event);
    else hide();
  });

  // One stop of the tab key, from which the arrow keys step. Chromium gives the focus to an svg
  // element that listens for it, so its parent does.
  let reached = 0;
  const reach = (next) => {
    points[reached].mark.tabIndex = -1;
    reached = next;
    points[reached].mark.tabIndex = 0;
  };
  for (const { mark } of points) {
    const [from, to] = [names[mark.dataset.true], names[mark.dataset.predicted]];
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", from === to ? `${from}, correct` : `${from} predicted as ${to}`);
  }
  reach(0);
  map.parentElement.addEventListener("focusin", (event) => {
    const next = points.findIndex(({ mark }) => mark === event.target);
    if (next < 0) return;
    reach(next);
    show(points[next]);
  });
  map.parentElement.addEventListener("focusout", hide);
  map.parentElement.addEventListener("keydown", (event) => {
    const last = points.length - 1;
    const free = (from, step) => {
      for (let next = from; next >= 0 && next <= last; next += step) {
        if (!points[next].mark.classList.contains("faded")) return next;
      }
      return reached;
    };
    const next = {
      ArrowRight: () => free(reached + 1, 1), ArrowDown: () => free(reached + 1, 1),
      ArrowLeft: () => free(reached - 1, -1), ArrowUp: () => free(reached - 1, -1),
      Home: () => free(0, 1), End: () => free(last, -1),
    }[event.key];
    if (event.key === "Escape") hide();
    if (!next) return;
    event.preventDefault();
    reach(next());
    points[reached].mark.focus();
    show(points[reached]); // also after Escape, when the focus stays
  });

  // Which images are highlighted: those of a name of the legend, and of the filter.
  const buttons = [...document.querySelectorAll(".legend button")];
  let fits = () => true;
  const update = () => {
    const pressed = buttons.find((button) => button.getAttribute("aria-pressed") === "true");
    for (const point of points) {
      const { dataset, classList } = point.mark;
      const classes = [dataset.true, dataset.predicted];
      const words = [dataset.path, ...classes.map((at) => names[at])].join(" ").toLowerCase();
      const chosen = !pressed || classList.contains(pressed.dataset.only);
      classList.toggle("faded", !(fits({ classes, words }) && chosen));
    }
  };
  document.addEventListener("filtered", (event) => {
    fits = event.detail;
    update();
  });
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") === "true";
      for (const other of buttons) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(!on));
      update();
    });
  }
})();
