// Panes over one grid: each shows one volume in three planes by NiiVue; crosshair, zoom and planes are linked.
// Pages and studies make a desk of their data; see view.js.
"use strict";

const NORMALS = { axial: 2, coronal: 1, sagittal: 0 }; // the axis of the grid that a plane's slices count along
const SLICE_TYPES = { axial: 0, coronal: 1, sagittal: 2, three: 3 }; // NiiVue's
const OF_NIIVUE = ["axial", "coronal", "sagittal"]; // its axCorSag
const CROSSHAIR_PX = 1.4; // a thinner line falls between the pixels
// Texture units in which NiiVue prepares the gradients of a volume rendering, 2 x 4 bytes per voxel at each change of a
// window. There is none here: one pixel per slice will do.
const GRADIENT_UNITS = [33990, 33992];
const SCALES_MM = [100, 50, 20, 10, 5, 2, 1];
const WEBGL = "This page draws with WebGL 2, and this browser offers none. Expected: a current Firefox, Chrome, " +
  "Edge or Safari with hardware acceleration, or its software renderer, switched on.";

// NiiVue gets the same context when it asks.
function hasWebGl2(canvas) {
  return Boolean(canvas.getContext("webgl2", { alpha: true, antialias: false }));
}

// One plane of bytes: deflated bytes, or their base64.
async function inflate(source) {
  let bytes = source;
  if (typeof source === "string") {
    if (Uint8Array.fromBase64) bytes = Uint8Array.fromBase64(source);
    else bytes = Uint8Array.from(atob(source), (letter) => letter.charCodeAt(0));
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The planes of pack.py as one array of codes: uint8, uint16, or RGB bytes.
function joined(kind, planes) {
  const count = planes[0].length;
  if (kind === "rgb") {
    const rgb = new Uint8Array(3 * count);
    for (let i = 0, at = 0; i < count; i++) {
      const green = planes[0][i];
      rgb[at++] = planes[1][i] + green;
      rgb[at++] = green;
      rgb[at++] = planes[2][i] + green;
    }
    return rgb;
  }
  if (planes.length === 1) return planes[0];
  const codes = new Uint16Array(count);
  for (let i = 0; i < count; i++) codes[i] = planes[0][i] | (planes[1][i] << 8);
  return codes;
}

// A NIfTI file in memory, for NiiVue.
function nifti(grid, facts, codes) {
  const buffer = new ArrayBuffer(352 + codes.byteLength);
  const head = new DataView(buffer);
  const [type, bits] = facts.kind === "rgb" ? [128, 24] : codes instanceof Uint16Array ? [512, 16] : [2, 8];
  head.setInt32(0, 348, true);
  [3, ...grid.shape, 1, 1, 1, 1].forEach((n, i) => head.setInt16(40 + 2 * i, n, true));
  head.setInt16(70, type, true);
  head.setInt16(72, bits, true);
  const pitch = [0, 1, 2].map((c) => Math.hypot(...grid.affine.map((row) => row[c])));
  [1, ...pitch, 0, 0, 0, 0].forEach((mm, i) => head.setFloat32(76 + 4 * i, mm, true));
  head.setFloat32(108, 352, true);
  head.setFloat32(112, facts.kind === "rgb" ? 1 : facts.slope, true);
  head.setFloat32(116, facts.kind === "rgb" ? 0 : facts.inter, true);
  head.setUint8(123, 2); // mm
  head.setInt16(254, 1, true);
  grid.affine.flat().forEach((x, i) => head.setFloat32(280 + 4 * i, x, true));
  [0x6e, 0x2b, 0x31, 0].forEach((byte, i) => head.setUint8(344 + i, byte));
  new Uint8Array(buffer, 352).set(new Uint8Array(codes.buffer, codes.byteOffset, codes.byteLength));
  return buffer;
}

// NiiVue looks through all voxels for a window of its own; the page has one.
if (globalThis.niivue) {
  niivue.NVImage.prototype.calMinMax = function () {
    const { cal_min: low, cal_max: high } = this.hdr;
    Object.assign(this, { cal_min: low, cal_max: high, robust_min: low, robust_max: high, global_min: low, global_max: high });
    return [low, high, low, high];
  };
}

class Desk {
  // data: see page.py. load(key): the planes of a volume, as inflate takes them.
  constructor(data, load) {
    Object.assign(this, { data, load, panes: new Map(), drawn: [], pointed: [], planes: "three", plane: "axial" });
    this.voxel = data.shape.map((n) => Math.floor(n / 2));
    this.zoom = [0, 0, 0, 1];
    this.volumes = {};
    this.seen = { axial: new Set(), coronal: new Set(), sagittal: new Set() };
    this.shownCrosshair = true;
  }

  // After all panes are drawn, in the same task: their canvases can be copied then, and not later.
  onDraw(listener) { this.drawn.push(listener); }
  onPoint(listener) { this.pointed.push(listener); }

  async volume(key) {
    if (!this.volumes[key]) {
      const facts = this.data.volumes[key];
      const planes = [];
      for (const source of await this.load(key)) planes.push(await inflate(source));
      this.volumes[key] = { facts, codes: joined(facts.kind, planes) };
    }
    return this.volumes[key];
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
      sliceType: this.data.isVolume ? SLICE_TYPES.three : SLICE_TYPES.axial, isNearestInterpolation: !this.data.isVolume,
    });
    const textures = nv.rgbaTex.bind(nv);
    nv.rgbaTex = (old, unit, dims, ...rest) =>
      textures(old, unit, GRADIENT_UNITS.includes(unit) ? [dims[0], 1, 1, dims[3]] : dims, ...rest);
    await nv.attachToCanvas(canvas);
    const pane = { name, canvas, nv, key: null, loaded: {} };
    this.panes.set(name, pane);
    await this.put(name, key);
    this.listen(canvas, nv, name);
    new ResizeObserver(() => this.redraw()).observe(canvas.parentElement); // NiiVue's own came first
    return pane;
  }

  // Another volume in a pane, such as B before its registration.
  async put(name, key) {
    const pane = this.panes.get(name);
    if (!pane.loaded[key]) {
      const { facts, codes } = await this.volume(key);
      const image = await niivue.NVImage.new(
        nifti(this.data, facts, codes), `${key}.nii`, this.colours(pane, key), 1, null, facts.low, facts.high,
      );
      if (facts.kind === "grey") this.volumes[key].codes = image.img; // one copy, not two
      pane.loaded[key] = image;
    }
    if (pane.key) pane.nv.removeVolume(pane.loaded[pane.key]);
    pane.key = key;
    pane.nv.addVolume(pane.loaded[key]);
    this.redraw();
  }

  colours(pane, key) {
    const { palette } = this.data;
    if (!palette || !(key === "b" || key === "before") || this.data.volumes[key].kind === "rgb") return "gray";
    pane.nv.addColormap("palette", {
      R: palette.map((c) => c[0]), G: palette.map((c) => c[1]), B: palette.map((c) => c[2]),
      A: palette.map(() => 255), I: palette.map((_, i) => i),
    });
    return "palette";
  }

  window(name, low, high) {
    const pane = this.panes.get(name);
    for (const image of Object.values(pane.loaded)) Object.assign(image, { cal_min: low, cal_max: high });
    pane.nv.updateGLVolume();
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
    let drag = null;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      const found = this.under(event, canvas, nv);
      if (!found) return;
      canvas.setPointerCapture(event.pointerId);
      this.plane = found.plane;
      drag = { windows: event.button === 2 || event.shiftKey, x: event.clientX, y: event.clientY };
      if (!drag.windows) this.moveTo(found.voxel);
    });
    canvas.addEventListener("pointermove", (event) => {
      const found = this.under(event, canvas, nv);
      this.pointer = [event, canvas, nv];
      if (drag?.windows) {
        this.onWindowDrag?.(name, event.clientX - drag.x, event.clientY - drag.y);
        Object.assign(drag, { x: event.clientX, y: event.clientY });
      } else if (drag && found && found.plane === this.plane) this.moveTo(found.voxel);
      for (const listener of this.pointed) listener();
    });
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
      canvas.addEventListener(end, (event) => {
        if (event.type === "pointerleave") this.pointer = null;
        if (event.type !== "pointerleave") drag = null;
        for (const listener of this.pointed) listener();
      });
    }
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey || event.metaKey) { this.zoomBy(event.deltaY < 0 ? 1.15 : 1 / 1.15); return; }
      const found = this.under(event, canvas, nv);
      if (found) this.plane = found.plane;
      this.step(NORMALS[this.plane], event.deltaY < 0 ? 1 : -1);
    }, { passive: false });
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
