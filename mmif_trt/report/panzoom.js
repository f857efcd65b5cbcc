// Panes that pan and zoom together: every .pane under `root` holds one or more img. Used by reports and studies.
"use strict";

function panZoom(root) {
  const view = { zoom: 1, x: 0, y: 0 }; // x, y: shift in shares of a pane's side, so panes may differ in size
  const listeners = [];
  const panes = () => [...root.querySelectorAll(".pane")];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  function apply() {
    const most = (view.zoom - 1) / 2; // the picture's edge never leaves the pane's
    view.x = clamp(view.x, -most, most);
    view.y = clamp(view.y, -most, most);
    for (const pane of panes()) {
      for (const img of pane.querySelectorAll("img")) {
        img.style.transform =
          `translate(${view.x * pane.clientWidth}px, ${view.y * pane.clientHeight}px) scale(${view.zoom})`;
      }
    }
    for (const listener of listeners) listener(view);
  }

  // Zoom by a factor and keep the point (px, py), in shares of a pane from its centre, where it is.
  function zoomAt(factor, px = 0, py = 0) {
    const zoom = clamp(view.zoom * factor, 1, 16);
    const k = zoom / view.zoom;
    view.x = px - (px - view.x) * k;
    view.y = py - (py - view.y) * k;
    view.zoom = zoom;
    apply();
  }
  function pan(dx, dy) {
    view.x += dx;
    view.y += dy;
    apply();
  }
  function reset() {
    Object.assign(view, { zoom: 1, x: 0, y: 0 });
    apply();
  }
  function share(pane, event) {
    const box = pane.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width - 0.5, (event.clientY - box.top) / box.height - 0.5];
  }

  const touches = new Map(); // pointer -> last [x, y]
  function bind(pane) {
    pane.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomAt(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...share(pane, event));
    }, { passive: false });
    pane.addEventListener("pointerdown", (event) => {
      if (event.button || event.target.closest("input")) return;
      pane.setPointerCapture(event.pointerId);
      touches.set(event.pointerId, share(pane, event));
    });
    pane.addEventListener("pointermove", (event) => {
      const before = touches.get(event.pointerId);
      if (!before) return;
      const now = share(pane, event);
      const other = [...touches].find(([id]) => id !== event.pointerId);
      if (other) { // pinch
        const apart = (p) => Math.hypot(p[0] - other[1][0], p[1] - other[1][1]) || 1e-3;
        zoomAt(apart(now) / apart(before), (now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2);
      } else {
        pan(now[0] - before[0], now[1] - before[1]);
      }
      touches.set(event.pointerId, now);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      pane.addEventListener(end, (event) => touches.delete(event.pointerId));
    }
    pane.addEventListener("dblclick", reset);
    pane.addEventListener("dragstart", (event) => event.preventDefault());
  }
  panes().forEach(bind);
  window.addEventListener("resize", apply);
  apply();
  return { view, zoomAt, pan, reset, apply, onChange: (listener) => listeners.push(listener) };
}
