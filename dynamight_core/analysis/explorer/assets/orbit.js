// Turning and zooming of a view in three dimensions, by mouse, touch and keys.

import { product, rotationAbout } from "./geometry.js";

// Rotation by an arrow key, and by a pixel of the mouse, radians.
const TURN = 0.12;
const DRAG = 0.008;
// Pixels that the mouse moves before a click becomes a drag.
const MIN_MOVE = 4;

// Let a canvas turn a view that has `rotation`, `zoom`, `reset()` and `turned()`; `click(event)` is optional. Without
// `wheel`, the mouse wheel scrolls the page and Ctrl with it zooms.
export function listenToTurns(canvas, view, { wheel = true, click = () => {} } = {}) {
  let last = null;
  let way = 0;
  const turn = (across, down) => {
    view.rotation = product(product(rotationAbout(0, down), rotationAbout(1, across)), view.rotation);
    view.turned();
  };
  const zoomBy = (factor) => {
    view.zoom *= factor;
    view.turned();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = [event.clientX, event.clientY];
    way = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]];
    last = [event.clientX, event.clientY];
    way += Math.hypot(dx, dy);
    if (way > MIN_MOVE) turn(DRAG * dx, DRAG * dy);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (last && way <= MIN_MOVE) click(event);
    last = null;
  });
  canvas.addEventListener("pointercancel", () => {
    last = null;
  });
  canvas.addEventListener("dblclick", () => view.reset());
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!wheel && !event.ctrlKey) return;
      event.preventDefault();
      zoomBy(Math.exp(-0.0012 * event.deltaY));
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (event) => {
    const work = {
      ArrowLeft: () => turn(-TURN, 0),
      ArrowRight: () => turn(TURN, 0),
      ArrowUp: () => turn(0, -TURN),
      ArrowDown: () => turn(0, TURN),
      "+": () => zoomBy(1.15),
      "=": () => zoomBy(1.15),
      "-": () => zoomBy(1 / 1.15),
      0: () => view.reset(),
    }[event.key];
    if (!work || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    work();
  });
}
