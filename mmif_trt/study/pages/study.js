// Keys, common pan and zoom, and the time a page was visible. Every page also works without this script.
"use strict";

const form = document.getElementById("form");
const panes = document.getElementById("panes");
const motion = panes.querySelector("canvas") ? volumeViewer(panes, fail) : panZoom(panes);
const zoomText = document.getElementById("zoomed");
const pictures = [...document.querySelectorAll(".pane img")];
let ready = false; // keys work once all pictures of the item have loaded
let broken = false; // nobody answers to a picture that is not there
let sent = false;
let visible = 0;
let since = document.hidden ? null : performance.now();

document.querySelector(".zooms").hidden = false;
motion.onChange((view) => { zoomText.textContent = view.zoom.toFixed(1) + "×"; });

function fail(figures, text = "This picture did not load. Reload the page.") {
  ready = false;
  broken = true;
  document.body.classList.remove("ready");
  for (const figure of figures) {
    if (figure.querySelector(".missing")) continue;
    const words = Object.assign(document.createElement("p"), { textContent: text, className: "missing", role: "alert" });
    figure.querySelector(".pane").append(words);
  }
}
(motion.loaded || Promise.all(pictures.map((img) => img.decode().catch(() => fail([img.closest("figure")])))))
  .then(() => { if (!broken) { ready = true; document.body.classList.add("ready"); } });

document.addEventListener("visibilitychange", () => {
  if (document.hidden && since !== null) { visible += performance.now() - since; since = null; }
  else if (!document.hidden) since = performance.now();
});
form.addEventListener("submit", (event) => {
  if (sent || broken) { event.preventDefault(); return; } // sent: a double click
  sent = true;
  const seconds = (visible + (since === null ? 0 : performance.now() - since)) / 1000;
  form.elements.visible_s.value = seconds.toFixed(3);
  form.elements.zoom.value = motion.view.zoom.toFixed(3);
  motion.fill?.(form);
});
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

for (const slider of form.querySelectorAll("input[type=range]")) {
  slider.addEventListener("input", () => {
    const { brightness, contrast } = form.elements;
    for (const img of pictures) img.style.filter = `brightness(${brightness.value}) contrast(${contrast.value})`;
  });
}
const zooms = { in: () => motion.zoomAt(1.25), out: () => motion.zoomAt(0.8), whole: () => motion.reset() };
for (const button of document.querySelectorAll("[data-zoom]")) {
  button.addEventListener("click", zooms[button.dataset.zoom]);
}

// A digit rates the scale that has the focus, or the first one not yet rated.
function rate(digit) {
  const fields = [...form.querySelectorAll("fieldset")];
  const field = document.activeElement.closest("fieldset") || fields.find((f) => !f.querySelector(":checked"));
  if (!field) return;
  field.querySelector(`input[value="${digit}"]`).checked = true;
  const following = fields.slice(fields.indexOf(field) + 1).find((f) => !f.querySelector(":checked"));
  (following ? following.querySelector("input") : form.querySelector(".choices button")).focus();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowLeft: [0.08, 0], ArrowRight: [-0.08, 0], ArrowUp: [0, 0.08], ArrowDown: [0, -0.08] }[event.key];
  if (event.shiftKey && step) { motion.pan(...step); event.preventDefault(); return; }
  if (event.target.matches("input[type=range], select")) return;
  if (motion.key?.(event)) { event.preventDefault(); return; }
  if (event.repeat) return; // a held key moves, and answers once
  if ("+=".includes(event.key)) zooms.in();
  else if (event.key === "-") zooms.out();
  else if (event.key === "0") zooms.whole();
  else if (event.key === "Backspace") document.getElementById("back")?.click();
  else if (document.body.classList.contains("scale")) {
    if (/^[1-5]$/.test(event.key)) rate(event.key);
    else return; // the browser itself moves within a scale by arrows and sends the form by Enter
  } else {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const button = [...form.querySelectorAll("[data-keys]")].find((b) => b.dataset.keys.split(" ").includes(key));
    if (!button) return;
    if (ready) button.click();
  }
  event.preventDefault();
});
