// Fills the page from its data: tables, viewer, best and worst cases, contact sheets. Names enter it as text only.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
const number = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));
const isBaseline = (method) => data.baselines.includes(method);

function methodCell(method) {
  const cell = make("th", method, { scope: "row" });
  if (isBaseline(method)) cell.append(make("span", "baseline", { class: "mark" }));
  return cell;
}

// rows: [[method, [values]]]; the best value of each column is bold; lowest: columns where lower is better.
function fill(table, heads, rows, lowest = []) {
  const best = heads.map((_, c) => {
    const column = rows.map(([, values]) => values[c]).filter((value) => value !== null);
    return column.length ? (lowest.includes(c) ? Math.min(...column) : Math.max(...column)) : null;
  });
  table.tBodies[0].replaceChildren(...rows.map(([method, values]) => {
    const row = make("tr");
    row.append(methodCell(method), ...values.map((value, c) => {
      const cell = make("td");
      cell.append(value !== null && value === best[c] ? make("b", number(value)) : number(value));
      return cell;
    }));
    return row;
  }));
}

// The table of means: a click on a heading sorts, a second click reverses the order.
const heads = ["mean rank", ...data.measures];
const rows = data.methods.map((method) => [method, [data.rank[method], ...data.means[method]]]);
const headRow = make("tr");
function sortBy(column, descending) {
  rows.sort((a, b) => {
    if (column < 0) return a[0].localeCompare(b[0]) * (descending ? -1 : 1);
    const [x, y] = [a[1][column], b[1][column]];
    if (x === null || y === null) return (x === null) - (y === null); // undefined values come last
    return (x - y) * (descending ? -1 : 1);
  });
  [...headRow.cells].forEach((cell, i) => {
    cell.setAttribute("aria-sort", i === column + 1 ? (descending ? "descending" : "ascending") : "none");
  });
  fill(at("means"), heads, rows, [0]);
}
["method", ...heads].forEach((name, i) => {
  const cell = make("th", undefined, { scope: "col" });
  const button = make("button", name, { type: "button" });
  button.addEventListener("click", () => {
    const now = cell.getAttribute("aria-sort");
    sortBy(i - 1, now === "none" ? i > 1 : now === "ascending");
  });
  cell.append(button);
  headRow.append(cell);
});
at("means").tHead.append(headRow);
sortBy(0, false);

// The viewer.
const state = { index: 0, a: data.methods[0], b: data.methods[1] || data.methods[0], mode: "side" };
const panes = at("panes");
const motion = panZoom(panes);
motion.onChange((view) => {
  at("zoomed").textContent = view.zoom.toFixed(1) + "×";
  // A whole picture cannot be dragged: a finger on it scrolls the page.
  for (const pane of panes.querySelectorAll(".pane")) pane.style.touchAction = view.zoom > 1 ? "none" : "pan-y";
});
const picture = (index, slot) => (data.whole ? data.whole[index][slot] : data.pictures[index][slot]);

function show(change = {}) {
  Object.assign(state, change);
  const slots = { mri: "mri", other: "other", a: state.a, b: state.b, b2: state.b };
  for (const img of panes.querySelectorAll("img")) {
    img.src = picture(state.index, slots[img.dataset.slot]);
    img.draggable = false;
  }
  const swiping = state.mode === "swipe";
  panes.className = "panes " + (swiping ? "swiping" : "side");
  document.querySelector("label.swipe").hidden = !swiping;
  at("name-a").textContent = swiping ? `${state.a} | ${state.b}` : state.a;
  at("name-b").textContent = state.b;
  at("case").value = state.index;
  at("a").value = state.a;
  at("b").value = state.b;
  for (const button of document.querySelectorAll("[data-mode]")) {
    button.setAttribute("aria-pressed", button.dataset.mode === state.mode);
  }
  swipe();
  motion.apply();
  at("case-table").caption.textContent = `Measures of ${data.cases[state.index]}`;
  fill(at("case-table"), data.measures, data.methods.map((method) => [method, data.values[method][state.index]]));
}
// B lies over A and is cut at the edge; the edge stays in place on the screen while the picture moves.
function swipe() {
  const share = at("swipe").value / 100;
  const over = panes.querySelector(".over");
  const { zoom, x } = motion.view;
  over.style.clipPath = `inset(0 0 0 ${100 * ((share - 0.5 - x) / zoom + 0.5)}%)`;
  panes.querySelector(".edge").style.left = `${100 * share}%`;
}
motion.onChange(swipe);
at("swipe").addEventListener("input", swipe);

data.cases.forEach((name, i) => at("case").append(make("option", name, { value: i })));
for (const id of ["a", "b"]) {
  data.methods.forEach((name) => at(id).append(make("option", name, { value: name })));
  at(id).addEventListener("change", (event) => show({ [id]: event.target.value }));
}
at("case").addEventListener("change", (event) => show({ index: Number(event.target.value) }));
for (const button of document.querySelectorAll("[data-mode]")) {
  button.addEventListener("click", () => show({ mode: button.dataset.mode }));
}
const zooms = { in: () => motion.zoomAt(1.25), out: () => motion.zoomAt(0.8), whole: () => motion.reset() };
for (const button of document.querySelectorAll("[data-zoom]")) {
  button.addEventListener("click", zooms[button.dataset.zoom]);
}
const step = (by) => show({ index: (state.index + by + data.cases.length) % data.cases.length });
const keys = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), x: () => show({ a: state.b, b: state.a }),
  s: () => show({ mode: state.mode === "side" ? "swipe" : "side" }),
  "+": zooms.in, "=": zooms.in, "-": zooms.out, 0: zooms.whole,
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input")) return;
  const shift = { ArrowLeft: [0.08, 0], ArrowRight: [-0.08, 0], ArrowUp: [0, 0.08], ArrowDown: [0, -0.08] }[event.key];
  if (shift && event.target.matches(".row, .wide")) return; // they scroll by arrows
  if (shift && event.shiftKey) { motion.pan(...shift); event.preventDefault(); return; }
  const call = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (call) { call(); event.preventDefault(); }
});
const caseHead = make("tr");
["method", ...data.measures].forEach((name) => caseHead.append(make("th", name, { scope: "col" })));
at("case-table").tHead.append(caseHead);
show();

// Thumbnails of the best and worst cases, and of all cases. Pictures of files load as they come near the visible part.
function open(index, method) {
  const change = { index };
  if (method) {
    change.a = method;
    if (state.b === method) change.b = data.methods.find((name) => name !== method) || method;
  }
  show(change);
  at("viewer").scrollIntoView();
}
function thumb(index, slot, label) {
  const button = make("button", undefined, { type: "button", class: "thumb", title: `${data.cases[index]}, ${label}` });
  const src = data.pictures[index][slot];
  const loading = src.startsWith("data:") ? "eager" : "lazy"; // a printer takes what was never scrolled to as well
  const img = make("img", undefined, { alt: `${data.cases[index]}, ${label}`, loading, src, width: 160, height: 160 });
  button.append(img, make("span", label));
  button.addEventListener("click", () => open(index, data.methods.includes(slot) ? slot : null));
  return button;
}
data.measures.forEach((name) => at("measure").append(make("option", name)));
function showExtremes() {
  const found = data.extremes[at("measure").value];
  const pair = make("div", undefined, { class: "pair" });
  for (const kind of ["worst", "best"]) {
    const block = make("div");
    block.append(make("h3", kind === "worst" ? "Worst first" : "Best first"));
    for (const [name, method, value] of found[kind]) {
      const index = data.cases.indexOf(name);
      const row = make("div", undefined, { class: "row" });
      row.append(thumb(index, "mri", "MRI"), thumb(index, "other", data.other), thumb(index, method, method));
      block.append(make("p", `${name}, ${method}: ${number(value)}`, { class: "faint" }), row);
    }
    if (!found[kind].length) block.append(make("p", "Not defined on any case.", { class: "faint" }));
    pair.append(block);
  }
  at("extremes").replaceChildren(pair);
}
at("measure").addEventListener("change", showExtremes);
showExtremes();
at("sheet").append(...data.cases.map((name, index) => {
  const block = make("div", undefined, { class: "case" });
  const row = make("div", undefined, { class: "row", tabindex: 0, role: "group", "aria-label": name });
  row.append(thumb(index, "mri", "MRI"), thumb(index, "other", data.other),
    ...data.methods.map((method) => thumb(index, method, method)));
  block.append(make("h3", name), row);
  return block;
}));
