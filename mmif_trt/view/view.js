// The page's controls over a Desk: values, slices, windows, and a fourth pane that compares two of the others.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
function short(value) {
  const size = Math.abs(value);
  if (size >= 1e7) return value.toExponential(2);
  return size >= 100 || Number.isInteger(value) ? value.toFixed(0) : Number(value.toPrecision(3)).toString();
}

// The text of a volume's planes; it leaves the document, which would keep it in memory.
async function load(key) {
  const texts = [];
  for (let i = 0; i < data.volumes[key].planes; i++) {
    const element = at(`${key}${i}`);
    texts.push(element.textContent);
    element.remove();
  }
  return texts;
}
const desk = new Desk(data, load);
const canvasOf = (name) => at(`pane-${name}`).querySelector("canvas");
const check = canvasOf("check");

// Uptake that a reader sees in a fused colour: the palette's entry that is nearest in Oklab, lightness times 0.3
// (measure/uptake.py).
function oklab(rgb) {
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.3 * (0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s),
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s, 0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}
const entries = data.palette && data.palette.map(oklab);
function readBack(rgb) {
  const wanted = oklab(rgb);
  let best = 0, least = Infinity;
  entries.forEach((entry, i) => {
    const far = (entry[0] - wanted[0]) ** 2 + (entry[1] - wanted[1]) ** 2 + (entry[2] - wanted[2]) ** 2;
    if (far < least) [least, best] = [far, i];
  });
  return best / (entries.length - 1);
}

// Values under the pointer, else at the crosshair.
function words(key, voxel) {
  const value = desk.value(key, voxel);
  const { units, kind } = data.volumes[key];
  if (value === null) return "–";
  return kind === "rgb" ? value.join(", ") : `${short(value)}${units ? ` ${units}` : ""}`;
}
function showValues() {
  const { hovered } = desk;
  const voxel = hovered || desk.voxel;
  at("where-from").textContent = hovered ? "under the pointer" : "at the crosshair";
  const second = desk.panes.get("b")?.key || "b";
  const rows = [["A", words("a", voxel)], [second === "b" ? "B" : "B before", words(second, voxel)], ["Fused", words("fused", voxel)]];
  const rgb = desk.value("fused", voxel);
  if (entries && Array.isArray(rgb)) {
    const place = readBack(rgb);
    const { low, high, units, kind } = data.volumes.b;
    const says = kind === "rgb" ? `${(100 * place).toFixed(0)} % of the palette` : `${short(low + place * (high - low))}${units ? ` ${units}` : ""}`;
    rows.push(["Uptake read back", says]);
  }
  if (data.isVolume) {
    const mm = data.affine.map((row) => row[3] + row.slice(0, 3).reduce((sum, x, i) => sum + x * voxel[i], 0));
    rows.push(["Place", mm.map((x, i) => `${Math.abs(x).toFixed(1)} ${["LR", "PA", "IS"][i][Number(x >= 0)]}`).join(", ") + " mm"]);
  } else rows.push(["Pixel", `row ${data.shape[1] - voxel[1]}, column ${voxel[0] + 1}`]);
  at("values").replaceChildren(...rows.flatMap(([what, text]) => [make("dt", what), make("dd", text)]));
}

// A slider per axis.
const sliders = Object.entries(NORMALS).filter(([, axis]) => data.shape[axis] > 1 && data.isVolume).map(([plane, axis]) => {
  const label = make("label", undefined, { class: "slide" });
  const input = make("input", undefined, { type: "range", min: 1, max: data.shape[axis], step: 1 });
  const output = make("output");
  label.append(make("span", plane), input, output);
  at("slices").append(label);
  input.addEventListener("input", () => {
    const voxel = [...desk.voxel];
    voxel[axis] = Number(input.value) - 1;
    desk.plane = plane;
    desk.moveTo(voxel);
  });
  return () => {
    input.value = desk.voxel[axis] + 1;
    output.textContent = `${desk.voxel[axis] + 1} of ${data.shape[axis]}`;
  };
});

// Level and width of A and B, presets, and the ramp of the palette.
const PRESETS = { HU: [["brain", 40, 80], ["soft tissue", 50, 350], ["bone", 600, 2800]] };
const windows = {};
function addWindow(name) {
  const { kind, low, high, units, label } = data.volumes[name];
  if (kind !== "grey") return;
  const bar = make("div", undefined, { class: "bar", role: "group", "aria-label": `Window of ${name.toUpperCase()}` });
  const fields = ["level", "width"].map((what) => {
    const line = make("label", `${what === "level" ? `${name.toUpperCase()}, level` : what}`);
    const input = make("input", undefined, { type: "number", step: "any" });
    line.append(input);
    bar.append(line);
    return input;
  });
  const preset = make("select", undefined, { "aria-label": `Preset of ${name.toUpperCase()}` });
  const choices = [["as fused", (low + high) / 2, high - low], ...(PRESETS[units] || [])];
  choices.forEach(([what], i) => preset.append(make("option", what, { value: i })));
  const other = make("option", "as set", { value: "" }); // so that "as fused" can be chosen again
  other.hidden = true;
  preset.append(other);
  bar.append(preset);
  const ramp = make("div", undefined, { class: "ramp" });
  const strip = make("canvas", undefined, { width: 256, height: 1, role: "img", "aria-label": `Colours of ${label}, black to white` });
  const ends = [make("span"), make("span")];
  ramp.append(ends[0], strip, ends[1]);
  at("windows").append(bar, ramp);
  const context = strip.getContext("2d");
  const pixels = context.createImageData(256, 1);
  const palette = name === "b" ? data.palette : null;
  for (let i = 0; i < 256; i++) pixels.data.set([...(palette ? palette[i] : [i, i, i]), 255], 4 * i);
  context.putImageData(pixels, 0, 0);
  const own = { low, high };
  function set(level, width, choice = "") {
    preset.value = choice;
    width = Math.max(width, (high - low) / 1000);
    Object.assign(own, { low: level - width / 2, high: level + width / 2 });
    fields[0].value = short(level);
    fields[1].value = short(width);
    ends[0].textContent = short(own.low);
    ends[1].textContent = `${short(own.high)}${units ? ` ${units}` : ""}`;
    if (desk.panes.has(name)) desk.window(name, own.low, own.high);
  }
  fields.forEach((field, i) => field.addEventListener("change", () => {
    const wanted = [(own.low + own.high) / 2, own.high - own.low]; // not the other field, which is rounded
    if (Number.isFinite(field.valueAsNumber)) wanted[i] = field.valueAsNumber;
    set(...wanted);
  }));
  preset.addEventListener("change", () => set(...choices[preset.value].slice(1), preset.value));
  windows[name] = { set, own, reach: high - low };
  set(choices[0][1], choices[0][2], 0);
}
addWindow("a");
addWindow("b");
desk.onWindowDrag = (name, dx, dy) => {
  const { set, own, reach } = windows[name] || windows.a || {};
  if (!set) return;
  set((own.low + own.high) / 2 + (dy * reach) / 400, own.high - own.low + (dx * reach) / 400);
};

// The fourth pane: two of the others, drawn over each other as they stand.
const state = { mode: "overlay", share: { overlay: 50, swipe: 50, checker: 40, edges: 50 } };
const AMOUNTS = { overlay: "Opacity of second", swipe: "Edge", checker: "Size of the squares", edges: "Edges shown" };
const scratch = document.createElement("canvas");
function compare() {
  const [first, second] = ["first", "second"].map((id) => desk.panes.get(at(id).value));
  if (!first || !second) return;
  const { width, height } = first.canvas;
  if (check.width !== width || check.height !== height) Object.assign(check, { width, height });
  const context = check.getContext("2d");
  const share = state.share[state.mode] / 100;
  const draw = (pane) => context.drawImage(pane.canvas, 0, 0, width, height);
  context.globalAlpha = 1;
  if (state.mode === "edges") {
    draw(second);
    context.drawImage(edges(first, width, height, share), 0, 0);
    return;
  }
  draw(first);
  context.save();
  if (state.mode === "overlay") context.globalAlpha = share;
  else {
    context.beginPath();
    if (state.mode === "swipe") context.rect(width * share, 0, width, height);
    else {
      const side = Math.max(12, Math.round(share * 0.35 * Math.min(width, height)));
      for (let y = 0; y * side < height; y++) {
        for (let x = (y + 1) % 2; x * side < width; x += 2) context.rect(x * side, y * side, side, side);
      }
    }
    context.clip();
  }
  draw(second);
  context.restore();
  if (state.mode === "swipe") {
    context.fillStyle = "#e0a458";
    context.fillRect(width * share - 1, 0, 2, height);
  }
}
// Where what a pane shows is steepest across an edge: `share` of half of those places, without crosshair and letters.
function edges(pane, width, height, share) {
  Object.assign(scratch, { width, height });
  const context = scratch.getContext("2d", { willReadFrequently: true });
  desk.draw(pane, true);
  context.filter = "blur(2.5px)";
  context.drawImage(pane.canvas, 0, 0, width, height);
  context.filter = "none";
  desk.draw(pane);
  const picture = context.getImageData(0, 0, width, height);
  const { data: pixels } = picture;
  const light = (i) => pixels[4 * i] + pixels[4 * i + 1] + pixels[4 * i + 2];
  const steep = new Float32Array(width * height);
  const isUpright = new Uint8Array(width * height);
  for (const { leftTopWidthHeight } of pane.nv.screenSlices) {
    const [left, top, wide, high] = leftTopWidthHeight.map(Math.round);
    for (let y = Math.max(top + 6, 1); y < Math.min(top + high - 6, height - 1); y++) {
      for (let x = Math.max(left + 6, 1), i = y * width + x; x < Math.min(left + wide - 6, width - 1); x++, i++) {
        const [across, down] = [light(i + 1) - light(i - 1), light(i + width) - light(i - width)];
        steep[i] = Math.hypot(across, down);
        isUpright[i] = Math.abs(across) > Math.abs(down);
      }
    }
  }
  const peak = (i) => {
    const by = isUpright[i] ? 1 : width;
    return steep[i] > 6 && steep[i] >= steep[i - by] && steep[i] > steep[i + by];
  };
  const peaks = steep.filter((value, i) => peak(i)).sort();
  const least = peaks.length ? peaks[Math.floor((1 - share / 2) * (peaks.length - 1))] : Infinity;
  const marked = new Uint32Array(width * height);
  for (let i = 0; i < marked.length; i++) {
    if (steep[i] < least || !peak(i)) continue;
    marked[i] = marked[i + 1] = marked[i + width] = marked[i + width + 1] = 0xff5cbeff; // ABGR
  }
  pixels.set(new Uint8Array(marked.buffer));
  context.putImageData(picture, 0, 0);
  return scratch;
}
function setMode(mode) {
  state.mode = mode;
  at("mode").value = mode;
  at("amount").value = state.share[mode];
  at("amount-name").textContent = AMOUNTS[mode];
  caption();
  desk.redraw();
}
function caption() {
  const [first, second] = ["first", "second"].map((id) => at(id).selectedOptions[0].textContent);
  const text = { overlay: `${second} over ${first}`, swipe: `${first} | ${second}`, checker: `checkerboard of ${first} and ${second}`, edges: `edges of ${first} on ${second}` };
  at("check-caption").textContent = `Compare: ${text[state.mode]}`;
}
function slide(value) {
  state.share[state.mode] = Math.min(Math.max(value, 0), 100);
  at("amount").value = state.share[state.mode];
  desk.redraw();
}
at("mode").addEventListener("change", (event) => setMode(event.target.value));
at("amount").addEventListener("input", (event) => slide(Number(event.target.value)));
for (const id of ["first", "second"]) at(id).addEventListener("change", () => { caption(); desk.redraw(); });

// B before and after its registration.
async function before(wanted) {
  if (!data.volumes.before) return;
  at("before").setAttribute("aria-pressed", wanted);
  await desk.put("b", wanted ? "before" : "b");
  at("b-state").textContent = wanted ? " before the registration" : " after the registration";
  desk.window("b", windows.b.own.low, windows.b.own.high);
}
at("registration").hidden = !data.volumes.before;
if (data.volumes.before) at("b-state").textContent = " after the registration";
at("before").addEventListener("click", () => before(at("before").getAttribute("aria-pressed") !== "true"));

function front(name) {
  at("stage").className = name === "all" ? "all" : "one";
  for (const figure of at("stage").querySelectorAll("figure")) figure.classList.toggle("front", figure.id === `pane-${name}`);
  for (const button of document.querySelectorAll("[data-pane]")) button.setAttribute("aria-pressed", button.dataset.pane === name);
  desk.redraw();
}
for (const button of document.querySelectorAll("[data-pane]")) button.addEventListener("click", () => front(button.dataset.pane));
at("planes").closest("label").hidden = !data.isVolume;
if (!data.isVolume) at("slices-h").textContent = "Panes";
at("planes").value = desk.planes;
at("planes").addEventListener("change", (event) => desk.setPlanes(event.target.value));
for (const [tool, isOffered] of [["slices", data.isVolume], ["window", Object.keys(windows).length]]) {
  if (!isOffered) at("tool").querySelector(`[value=${tool}]`).remove();
}
at("tool").addEventListener("change", (event) => { desk.tool = event.target.value; });
at("zoom-in").addEventListener("click", () => desk.zoomBy(1.25));
at("zoom-out").addEventListener("click", () => desk.zoomBy(0.8));
at("zoom-whole").addEventListener("click", () => desk.whole());
at("crosshair").addEventListener("change", (event) => { desk.shownCrosshair = event.target.checked; desk.redraw(); });

const following = (id) => {
  const { options, selectedIndex } = at(id);
  return options[(selectedIndex + 1) % options.length].value;
};
const keys = {
  1: () => front("a"), 2: () => front("b"), 3: () => front("fused"), 4: () => front("check"), 5: () => front("all"),
  c: () => setMode(following("mode")), x: () => at("crosshair").click(), r: () => at("before").click(),
  "[": () => slide(state.share[state.mode] - 5), "]": () => slide(state.share[state.mode] + 5),
  v: () => { if (data.isVolume) { at("planes").value = following("planes"); desk.setPlanes(at("planes").value); } },
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input[type=number]")) return;
  const moves = /^(Arrow|Page|Home)/.test(event.key);
  if (moves && event.target.matches("input[type=range], aside")) return; // a slider's own keys; scrolling
  const call = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (call) call();
  else if (!desk.key(event)) return;
  event.preventDefault();
});

function showScales() {
  for (const name of ["a", "b", "fused", "check"]) {
    const bar = at(`pane-${name}`).querySelector(".scale");
    const pane = desk.panes.get(name === "check" ? "a" : name);
    const found = pane && desk.scale(pane);
    bar.hidden = !found;
    if (found) {
      bar.style.width = `${found.px}px`;
      bar.textContent = `${found.mm} mm`;
    }
  }
}
desk.onDraw(() => { showValues(); sliders.forEach((update) => update()); compare(); showScales(); });
desk.onPoint(showValues);
async function begin() {
  for (const name of ["a", "fused", "b"]) desk.volume(name);
  if (!hasWebGl2(canvasOf("a"))) throw new Error(WEBGL);
  for (const name of ["a", "fused", "b"]) { // the smallest first
    await desk.show(name, canvasOf(name), name);
    if (name === "a") performance.mark("first-paint");
  }
  desk.listen(check, desk.panes.get("a").nv, "a");
  setMode("overlay");
  at("busy").hidden = true;
  requestAnimationFrame(() => document.body.setAttribute("data-ready", "true"));
}
showValues();
function alarm(text) {
  at("busy").textContent = text;
  at("busy").className = "wrong";
  at("busy").setAttribute("role", "alert");
  at("busy").hidden = false;
}
desk.onLost = () => alarm(LOST);
begin().catch((error) => {
  alarm(error.message);
  if (error.message !== WEBGL) throw error;
});
