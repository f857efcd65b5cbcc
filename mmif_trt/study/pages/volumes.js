// Volumes of an item on one desk: what study.js needs of panZoom, and which slices were seen.
"use strict";

// One volume as pack.to_file makes it.
async function fetched(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status}`);
  const buffer = await response.arrayBuffer();
  const length = new DataView(buffer).getUint32(8, true);
  const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 12, length)));
  let at = 12 + length;
  const planes = facts.sizes.map((size) => new Uint8Array(buffer, at, size, (at += size)));
  return { facts, planes };
}

// Sorted numbers from 0 as "12-40 55", from 1.
function runs(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const found = [];
  for (const n of sorted) {
    const last = found.at(-1);
    if (last && last[1] === n - 1) last[1] = n;
    else found.push([n, n]);
  }
  return found.map(([from, to]) => (from === to ? `${from + 1}` : `${from + 1}-${to + 1}`)).join(" ");
}

const KEY_PX = 10; // of a drag that a key stands for
const SLOTS = { mri: "a", other: "b", left: "left", right: "right" };
function volumeViewer(root, fail) {
  const canvases = [...root.querySelectorAll("canvas")];
  const figures = canvases.map((canvas) => canvas.closest("figure"));
  const view = { zoom: 1 };
  const listeners = [];
  const windows = {};
  let desk = null;
  async function load() {
    if (!hasWebGl2(canvases[0])) throw new Error(WEBGL);
    const files = {};
    await Promise.all(canvases.map(async (canvas) => { files[SLOTS[canvas.dataset.slot]] = await fetched(canvas.dataset.volume); }));
    const { isVolume, shape, affine, spacing } = files.a.facts;
    const volumes = Object.fromEntries(Object.entries(files).map(([key, file]) => [key, file.facts]));
    const data = { isVolume, shape, affine, spacing, volumes, palette: files.b.facts.palette };
    desk = new Desk(data, async (key) => files[key].planes);
    desk.onLost = () => fail(figures, LOST);
    for (const key of Object.keys(volumes)) desk.volume(key);
    for (const key of ["a", "b"]) windows[key] = [volumes[key].low, volumes[key].high];
    for (const canvas of canvases) {
      const key = SLOTS[canvas.dataset.slot];
      await desk.show(key, canvas, key);
      files[key].planes = null;
    }
    desk.onDraw(() => {
      view.zoom = desk.zoom[3];
      document.getElementById("place").textContent =
        Object.entries(NORMALS).map(([plane, axis]) => `${plane} ${desk.voxel[axis] + 1}/${shape[axis]}`).join(", ");
      for (const listener of listeners) listener(view);
    });
    const button = document.getElementById("window");
    if (button) {
      const first = { a: windows.a, b: windows.b };
      const set = (key, low, high) => { windows[key] = [low, high]; desk.window(key, low, high); };
      desk.onWindowDrag = (key, dx, dy) => {
        if (!first[key] || volumes[key].kind === "rgb") return;
        const reach = first[key][1] - first[key][0];
        const [low, high] = windows[key];
        const width = Math.max(high - low + (dx * reach) / 400, reach / 1000);
        const level = (low + high) / 2 + (dy * reach) / 400;
        set(key, level - width / 2, level + width / 2);
      };
      button.addEventListener("click", () => { for (const key of ["a", "b"]) set(key, ...first[key]); });
    }
    document.getElementById("tool").addEventListener("change", (event) => { desk.tool = event.target.value; });
    document.getElementById("planes").value = desk.planes;
    document.getElementById("planes").addEventListener("change", (event) => desk.setPlanes(event.target.value));
    desk.redraw();
  }
  const loaded = load().catch((error) => fail(figures, error.message === WEBGL ? WEBGL : undefined));
  return {
    view, loaded,
    zoomAt: (factor) => desk?.zoomBy(factor),
    // Does by keys what a drag does; the window is that of the source with the focus.
    pan(dx, dy) {
      if (!desk) return;
      if (desk.tool === "slices") desk.step(NORMALS[desk.plane], dy > 0 || dx < 0 ? 1 : -1);
      else if (desk.tool === "crosshair") desk.key({ key: dx > 0 ? "ArrowLeft" : dx < 0 ? "ArrowRight" : dy > 0 ? "ArrowUp" : "ArrowDown" });
      else desk.onWindowDrag?.(SLOTS[document.activeElement.dataset.slot] || "a", -Math.sign(dx) * KEY_PX, -Math.sign(dy) * KEY_PX);
    },
    reset: () => desk?.whole(),
    onChange: (listener) => listeners.push(listener),
    key(event) {
      if (event.key.toLowerCase() === "v" && !event.repeat) {
        const planes = document.getElementById("planes");
        planes.selectedIndex = (planes.selectedIndex + 1) % planes.options.length;
        desk?.setPlanes(planes.value);
        return true;
      }
      return ["PageUp", "PageDown", "Home"].includes(event.key) && Boolean(desk?.key(event));
    },
    fill(form) {
      if (!desk) return;
      for (const plane of Object.keys(NORMALS)) form.elements[`seen_${plane}`].value = runs(desk.seen[plane]);
      if (!document.getElementById("window")) return;
      for (const [name, key] of [["window_mri", "a"], ["window_other", "b"]]) {
        form.elements[name].value = windows[key].map((x) => Number(x.toPrecision(6))).join(" to ");
      }
    },
  };
}
