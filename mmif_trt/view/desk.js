// Panes over one grid: each shows one volume in three planes by NiiVue; crosshair, zoom and planes are linked.
// Pages and studies make a desk of their data; see view.js.
"use strict";

const NORMALS = { axial: 2, coronal: 1, sagittal: 0 }; // the axis of the grid that a plane's slices count along
const SLICE_TYPES = { axial: 0, coronal: 1, sagittal: 2, three: 3 }; // NiiVue's
const OF_NIIVUE = ["axial", "coronal", "sagittal"]; // its axCorSag
const CROSSHAIR_PX = 1.4; // a thinner line falls between the pixels
const SCALES_MM = [100, 50, 20, 10, 5, 2, 1];
const WEBGL = "This page draws with WebGL 2, and this browser offers none. Expected: a current Firefox, Chrome, " +
  "Edge or Safari with hardware acceleration, or its software renderer, switched on.";

// A driver was updated or reset, or the machine slept: the panes are black from now on.
const LOST = "The browser lost this page's graphics, and its pictures with them. Reload the page.";

// NiiVue gets the same context when it asks.
const CONTEXT = { alpha: false, antialias: false }; // opaque: panes are drawn over each other
function hasWebGl2(canvas) {
  return Boolean(canvas.getContext("webgl2", CONTEXT));
}

// A NIfTI header in memory, of one byte per voxel, for NiiVue: it places the slices, and slices.js colours them.
function header(grid) {
  const buffer = new ArrayBuffer(352);
  const head = new DataView(buffer);
  head.setInt32(0, 348, true);
  [3, ...grid.shape, 1, 1, 1, 1].forEach((n, i) => head.setInt16(40 + 2 * i, n, true));
  head.setInt16(70, 2, true);
  head.setInt16(72, 8, true);
  const pitch = [0, 1, 2].map((c) => Math.hypot(...grid.affine.map((row) => row[c])));
  [1, ...pitch, 0, 0, 0, 0].forEach((mm, i) => head.setFloat32(76 + 4 * i, mm, true));
  head.setFloat32(108, 352, true);
  head.setFloat32(112, 1, true);
  head.setUint8(123, 2); // mm
  head.setInt16(254, 1, true);
  grid.affine.flat().forEach((x, i) => head.setFloat32(280 + 4 * i, x, true));
  [0x6e, 0x2b, 0x31, 0].forEach((byte, i) => head.setUint8(344 + i, byte));
  return buffer;
}
if (globalThis.niivue) niivue.NVImage.prototype.calMinMax = () => [0, 1, 0, 1]; // of no voxels

class Desk {
  // data: see page.py. load(key): the planes of a volume, as inflate takes them.
  constructor(data, load) {
    Object.assign(this, { data, load, panes: new Map(), drawn: [], pointed: [], planes: "three", plane: "axial" });
    const flat = Object.keys(NORMALS).filter((plane) => data.isVolume && data.shape[NORMALS[plane]] === 1);
    if (flat.length === 1) Object.assign(this, { planes: flat[0], plane: flat[0] }); // the others are lines
    this.voxel = data.shape.map((n) => Math.floor(n / 2));
    this.zoom = [0, 0, 0, 1];
    this.volumes = {};
    this.unpacking = {};
    this.seen = { axial: new Set(), coronal: new Set(), sagittal: new Set() };
    this.shownCrosshair = true;
    this.tool = "crosshair"; // what a drag moves: that, "slices" or the "window"
  }

  // After all panes are drawn, in the same task: their canvases can be copied then, and not later.
  onDraw(listener) { this.drawn.push(listener); }
  onPoint(listener) { this.pointed.push(listener); }

  // Starts to unpack a volume; awaited by whoever needs its voxels.
  volume(key) {
    this.unpacking[key] ??= (async () => {
      const facts = this.data.volumes[key];
      return (this.volumes[key] = { facts, codes: await unpack(facts.kind, await this.load(key)) });
    })();
    return this.unpacking[key];
  }

  // Values at a voxel: a number, or [R, G, B]; null before it is loaded.
  value(key, [x, y, z]) {
    const { shape } = this.data;
    const found = this.volumes[key];
    if (!found) return null;
    const at = x + shape[0] * (y + shape[1] * z);
    if (found.facts.kind === "rgb") return Array.from(found.codes.subarray(3 * at, 3 * at + 3));
    return found.codes[at] * found.facts.slope + found.facts.inter;
  }

  // Shows the volume `key` in a canvas; `name` of the pane.
  async show(name, canvas, key) {
    const nv = new niivue.Niivue({
      interactive: false, dragAndDropEnabled: false, logLevel: "silent", isAntiAlias: false, loadingText: "",
      isRadiologicalConvention: this.data.isVolume, sagittalNoseLeft: true, showAllOrientationMarkers: true, multiplanarShowRender: 0,
      isOrientationTextVisible: this.data.isVolume, crosshairColor: [0.88, 0.64, 0.35, 0.8],
      crosshairWidthUnit: "mm",
      fontColor: [0.79, 0.81, 0.84, 1], fontMinPx: 11, tileMargin: 2, backColor: [0, 0, 0, 1],
      sliceType: SLICE_TYPES[this.data.isVolume ? this.planes : "axial"], isNearestInterpolation: !this.data.isVolume,
    });
    const gl = canvas.getContext("webgl2", CONTEXT);
    canvas.addEventListener("webglcontextlost", () => this.onLost?.());
    makeLazy(gl);
    await nv.attachToCanvas(canvas);
    drawWithCodes(nv, !this.data.isVolume);
    usePalette(gl, this.colours(key));
    nv.addVolume(await niivue.NVImage.new(header(this.data), "grid.nii"));
    const { low, high } = this.data.volumes[key];
    const pane = { name, canvas, nv, key: null, window: [low, high], textures: {} };
    this.panes.set(name, pane);
    await this.put(name, key);
    this.listen(canvas, nv, name);
    new ResizeObserver(() => this.redraw()).observe(canvas.parentElement); // NiiVue's own came first
    return pane;
  }

  // Another volume in a pane, such as B before its registration.
  async put(name, key) {
    const pane = this.panes.get(name);
    const { facts, codes } = await this.volume(key);
    pane.textures[key] ??= upload(pane.nv.gl, this.data.shape, facts.kind, codes);
    pane.key = key;
    this.window(name, ...pane.window);
  }

  // 256 of [R, G, B].
  colours(key) {
    const { palette } = this.data;
    return palette && key === "b" ? palette : Array.from({ length: 256 }, (_, i) => [i, i, i]);
  }

  window(name, low, high) {
    const pane = this.panes.get(name);
    pane.window = [low, high];
    setCodes(pane.nv, pane.textures[pane.key], this.volumes[pane.key].facts, low, high);
    this.redraw();
  }

  setPlanes(planes) {
    this.planes = planes;
    if (planes !== "three") this.plane = planes;
    for (const { nv } of this.panes.values()) nv.setSliceType(SLICE_TYPES[planes]);
    this.redraw();
  }

  moveTo(voxel) {
    this.voxel = voxel.map((v, axis) => Math.min(Math.max(Math.round(v), 0), this.data.shape[axis] - 1));
    this.redraw();
  }
  step(axis, by) {
    const voxel = [...this.voxel];
    voxel[axis] += by;
    this.moveTo(voxel);
  }
  zoomBy(factor) {
    this.zoom[3] = Math.min(Math.max(this.zoom[3] * factor, 1), 12);
    if (this.zoom[3] === 1) this.zoom = [0, 0, 0, 1];
    else if (factor > 1) { // keep the crosshair in the middle of what is seen
      const fraction = this.voxel.map((v, i) => (v + 0.5) / this.data.shape[i] - 0.5);
      const pitch = [0, 1, 2].map((c) => Math.hypot(...this.data.affine.map((row) => row[c])));
      this.zoom = [...fraction.map((f, i) => -f * this.data.shape[i] * pitch[i]), this.zoom[3]];
    }
    this.redraw();
  }
  whole() {
    this.zoom = [0, 0, 0, 1];
    this.redraw();
  }

  // Draws all panes once before the next frame.
  redraw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      for (const pane of this.panes.values()) this.draw(pane);
      for (const plane of this.planes === "three" ? Object.keys(NORMALS) : [this.planes]) {
        this.seen[plane].add(this.voxel[NORMALS[plane]]);
      }
      for (const listener of this.drawn) listener();
    });
  }
  // bare: without crosshair, letters and scale.
  draw(pane, bare = false) {
    const { nv } = pane;
    const { opts } = nv;
    nv.scene.crosshairPos = new Float32Array(this.voxel.map((v, i) => (v + 0.5) / this.data.shape[i]));
    nv.scene.pan2Dxyzmm = new Float32Array(this.zoom);
    opts.isOrientationTextVisible = !bare && this.data.isVolume;
    // Twice where the first has another layout than the one before it: its scale sets the width of the crosshair.
    for (let scale = 0, tries = 0; tries < 2 && Math.abs(this.perMm(pane) / scale - 1) > 0.05; tries++) {
      scale = this.perMm(pane);
      opts.crosshairWidth = bare || !this.shownCrosshair ? 0 : CROSSHAIR_PX / scale;
      opts.crosshairGap = 6 * opts.crosshairWidth;
      if (nv.crosshairs3D) nv.crosshairs3D.mm[0] = NaN; // else it keeps the width that it was made with
      nv.drawScene();
    }
  }

  // Pixels of a pane's canvas per mm (per pixel of a picture without them); 1 before there is a layout.
  perMm({ nv }) {
    const tile = nv.screenSlices[0];
    if (!tile) return 1;
    const [left, top, width, height] = tile.leftTopWidthHeight;
    const [from, to] = [-8, 8].map((dx) => nv.canvasPos2frac([left + width / 2 + dx, top + height / 2]));
    const pitch = this.data.spacing || [1, 1, 1];
    const found = 16 / Math.hypot(...[0, 1, 2].map((i) => (to[i] - from[i]) * this.data.shape[i] * pitch[i]));
    return Number.isFinite(found) ? found : 1;
  }
  // A bar for a pane's scale, { mm, px } in pixels of the page, or null where there are no millimetres.
  scale(pane) {
    if (!this.data.spacing) return null;
    const perMm = (this.perMm(pane) * pane.canvas.clientWidth) / pane.canvas.width;
    const mm = SCALES_MM.find((one) => one * perMm < pane.canvas.clientWidth / 4);
    return mm ? { mm, px: mm * perMm } : null;
  }

  // What lies under a pointer: { voxel, plane }, or null.
  under(event, canvas, nv) {
    const box = canvas.getBoundingClientRect();
    const scale = nv.canvas.width / box.width;
    const at = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const fraction = nv.canvasPos2frac(at);
    if (!(fraction[0] >= 0)) return null;
    const voxel = Array.from(fraction, (f, i) => Math.min(Math.floor(f * this.data.shape[i]), this.data.shape[i] - 1));
    const tile = nv.tileIndex(...at);
    return { voxel, plane: OF_NIIVUE[nv.screenSlices[tile]?.axCorSag ?? 0] };
  }

  // The voxel under the pointer, or null: asked for anew, since a wheel turns the slices under it.
  get hovered() { return this.pointer ? this.under(...this.pointer)?.voxel ?? null : null; }

  // Pointer and wheel of a pane; `nv` is the one whose layout the canvas has.
  listen(canvas, nv, name) {
    const fingers = new Map(); // that are down: [x, y] by pointer
    let drag = null;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      const [x, y] = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [x, y]);
      drag = null;
      const found = this.under(event, canvas, nv);
      if (!found || fingers.size > 1) return;
      this.plane = found.plane;
      drag = { tool: event.button === 2 || event.shiftKey ? "window" : this.tool, x, y };
      if (drag.tool === "crosshair") this.moveTo(found.voxel);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = [event.clientX, event.clientY];
      const found = this.under(event, canvas, nv);
      this.pointer = [event, canvas, nv];
      if (fingers.size === 2 && fingers.has(event.pointerId)) this.pinch(fingers, event.pointerId, [x, y]);
      else if (drag?.tool === "window") {
        this.onWindowDrag?.(name, x - drag.x, y - drag.y);
        Object.assign(drag, { x, y });
      } else if (drag?.tool === "slices") {
        const axis = NORMALS[this.plane];
        const px = Math.min(Math.max(canvas.clientHeight / this.data.shape[axis], 3), 12); // per slice
        const slices = Math.trunc((drag.y - y) / px);
        drag.y -= slices * px;
        if (slices) this.step(axis, slices);
      } else if (drag && found && found.plane === this.plane) this.moveTo(found.voxel);
      for (const listener of this.pointed) listener();
    });
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
      canvas.addEventListener(end, (event) => {
        if (event.type === "pointerleave") this.pointer = null;
        else {
          fingers.delete(event.pointerId);
          drag = null; // a finger that stays after a pinch moves nothing
        }
        for (const listener of this.pointed) listener();
      });
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (!event.deltaY) return; // sideways
      if (event.ctrlKey || event.metaKey) { this.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15); return; }
      const found = this.under(event, canvas, nv);
      if (found) this.plane = found.plane;
      this.step(NORMALS[this.plane], event.deltaY < 0 ? 1 : -1);
    }, { passive: false });
  }

  // Zooms as one of two fingers moves to `now`.
  pinch(fingers, id, now) {
    const [, still] = [...fingers].find(([other]) => other !== id);
    const apart = ([x, y]) => Math.max(Math.hypot(x - still[0], y - still[1]), 1);
    this.zoomBy(apart(now) / apart(fingers.get(id)));
    fingers.set(id, now);
  }

  // Returns whether the key was one of the desk's.
  key(event) {
    const [across, down] = { 0: [1, 2], 1: [0, 2], 2: [0, 1] }[NORMALS[this.plane]];
    const flip = this.data.isVolume && NORMALS[this.plane] !== 0 ? -1 : 1; // the patient's right is on the left
    const nose = NORMALS[this.plane] === 0 ? -1 : 1; // the nose is on the left
    const steps = {
      ArrowLeft: [across, -flip * nose], ArrowRight: [across, flip * nose], ArrowUp: [down, 1], ArrowDown: [down, -1],
      PageUp: [NORMALS[this.plane], 1], PageDown: [NORMALS[this.plane], -1],
    };
    const other = {
      "+": () => this.zoomBy(1.25), "=": () => this.zoomBy(1.25), "-": () => this.zoomBy(0.8), 0: () => this.whole(),
      Home: () => { this.voxel = this.data.shape.map((n) => Math.floor(n / 2)); this.whole(); },
    };
    if (steps[event.key]) this.step(...steps[event.key]);
    else if (other[event.key]) other[event.key]();
    else return false;
    return true;
  }
}
