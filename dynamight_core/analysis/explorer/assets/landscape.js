// Particles in the plane of two motions: a raster in the background, points by WebGL, axes and drawings in front.

import { clearedContext, fitCanvas, oncePerFrame, strokeLine } from "./canvas.js";
import { PLAIN_POINT, palette } from "./colours.js";
import { themeColour } from "./dom.js";
import { tickLabel } from "./format.js";
import {
  isInside,
  panned,
  plotArea,
  pointStyle,
  squared,
  thinned,
  ticks,
  toPlane,
  toScreen,
  viewAll,
  zoomed,
} from "./plane.js";
import { POINT_FRAGMENT, POINT_VERTEX } from "./shaders.js";
import { bindAttribute, compileProgram, openGl, setPalette } from "./webgl.js";

// Most points that are drawn without WebGL.
const MAX_FLAT_POINTS = 20000;
// Most points that are drawn while the plane moves: the first of a random order. All follow after REST ms.
const MAX_MOVING_POINTS = 40000;
const REST = 200;
// Pixels that the mouse moves before a click becomes a drag.
const MIN_DRAG = 4;
const MAX_CORNERS = 24;
// Steps of the keyboard's cursor over the width of the view.
const STEPS = 40;

export class Landscape {
  // `on` has functions of points in the plane: place(coordinates) of one, inspect(point), lasso(corners), path(corners), compare(a, b).
  constructor(container, on) {
    [this.back, this.middle, this.front] = container.querySelectorAll("canvas");
    this.on = on;
    this.mode = "inspect";
    this.points = null;
    this.raster = null;
    this.drawn = [];
    // Chosen states, { at, colour, name }, which are dots.
    this.states = [];
    this.mark = null;
    // Where the keyboard is, or null.
    this.cursor = null;
    this.titles = ["", ""];
    // Distribution along X, where particles stand in its shape; and whether an Å is as long on both axes.
    this.curve = null;
    this.isSquare = true;
    this.view = { x: [-1, 1], y: [-1, 1] };
    this.redraw = oncePerFrame(() => this.draw());
    // Drawings follow the mouse; hundreds of thousands of points need not be redrawn with them.
    this.redrawFront = oncePerFrame(() => {
      if (this.points) this.drawFront();
    });
    this.gl = openGl(this.middle);
    if (this.gl) this.prepare();
    this.listen();
    new ResizeObserver(() => {
      if (this.isSquare && this.points) this.view = squared(this.whole ?? this.view, this.area);
      this.redraw();
    }).observe(container);
  }

  prepare() {
    const gl = this.gl;
    this.program = compileProgram(gl, POINT_VERTEX, POINT_FRAGMENT);
    [this.places, this.levels] = [gl.createBuffer(), gl.createBuffer()];
    this.texture = gl.createTexture();
  }

  // Show points: places are 0 to 65535 from `low` to `high`.
  setPoints({ low, high, places, particles }) {
    this.points = { low, high, places, total: particles, n: places.length / 2 };
    this.setLevels(new Uint8Array(this.points.n), null);
    if (this.gl) {
      this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.places);
      this.gl.bufferData(this.gl.ARRAY_BUFFER, places, this.gl.STATIC_DRAW);
    }
  }

  // Colour points by levels of a palette; all alike where the palette is null.
  setLevels(levels, colours) {
    this.points.levels = levels;
    this.colours = colours || palette([PLAIN_POINT, PLAIN_POINT], null, PLAIN_POINT);
    if (this.gl) {
      this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.levels);
      this.gl.bufferData(this.gl.ARRAY_BUFFER, levels, this.gl.STATIC_DRAW);
      setPalette(this.gl, this.texture, this.colours);
    }
    this.redraw();
  }

  // Show a background { x: [low, high], y: [low, high], image }, or none where it is null.
  setRaster(raster) {
    this.raster = raster;
    this.redraw();
  }

  // Show all particles.
  resetView() {
    // As far as the points reach; it is shown on one scale, which depends on the shape of the canvas.
    this.whole = viewAll(this.points.low, this.points.high);
    if (!this.isSquare) {
      const top = Math.max(this.whole.y[1], ...(this.curve ? this.curve.density.map((v) => 1.05 * v) : []));
      this.whole.y = [0, top];
    }
    this.view = this.isSquare ? squared(this.whole, this.area) : this.whole;
    this.redraw();
  }

  setMode(mode) {
    this.mode = mode;
    this.drawn = [];
    this.open = false;
    this.redrawFront();
  }

  setMark(point) {
    this.mark = point;
    this.redrawFront();
  }

  // Canvases beneath the foremost one.
  get canvases() {
    return [this.back, this.middle];
  }

  get area() {
    const { width, height } = this.front.getBoundingClientRect();
    return plotArea(width, height);
  }
  toScreen(point) {
    return toScreen(this.view, this.area, point);
  }
  toPlane(pixel) {
    return toPlane(this.view, this.area, pixel);
  }

  // ------------------------------------------------------------ drawing

  draw() {
    if (!this.points) return;
    this.drawRaster();
    if (this.gl) this.drawPoints();
    else this.drawFlatPoints();
    this.drawFront();
  }

  drawRaster() {
    const context = clearedContext(this.back);
    if (!this.raster) return;
    const { x, y, image } = this.raster;
    const [[left, bottom], [right, top]] = [this.toScreen([x[0], y[0]]), this.toScreen([x[1], y[1]])];
    clipTo(context, this.area);
    context.imageSmoothingEnabled = true;
    context.drawImage(image, left, top, right - left, bottom - top);
    context.restore();
  }

  drawPoints() {
    fitCanvas(this.middle);
    const {
      gl,
      area,
      points: { low, high, n },
      program: { made, places: at },
    } = this;
    const ratio = window.devicePixelRatio || 1;
    const { size, opacity } = pointStyle(n);
    gl.clearColor(0, 0, 0, 0);
    gl.disable(gl.SCISSOR_TEST);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const bottom = this.middle.height - (area.top + area.height) * ratio;
    const box = [area.left * ratio, bottom, area.width * ratio, area.height * ratio];
    gl.viewport(...box);
    gl.scissor(...box);
    gl.enable(gl.SCISSOR_TEST);
    gl.enable(gl.BLEND);
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.useProgram(made);
    bindAttribute(gl, at.place, this.places, 2, gl.UNSIGNED_SHORT, true);
    bindAttribute(gl, at.level, this.levels, 1, gl.UNSIGNED_BYTE, true);
    gl.uniform2f(at.low, ...low);
    gl.uniform2f(at.high, ...high);
    gl.uniform2f(at.viewLow, this.view.x[0], this.view.y[0]);
    gl.uniform2f(at.viewHigh, this.view.x[1], this.view.y[1]);
    gl.uniform1f(at.size, size * ratio);
    gl.uniform1f(at.opacity, opacity);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.drawArrays(gl.POINTS, 0, this.moving ? Math.min(n, MAX_MOVING_POINTS) : n);
  }

  drawFlatPoints() {
    const context = clearedContext(this.middle);
    const { low, high, places, levels, n } = this.points;
    const { view, area } = this;
    const { size } = pointStyle(n);
    for (let i = 0; i < Math.min(n, MAX_FLAT_POINTS); i++) {
      const point = [0, 1].map((k) => low[k] + (places[2 * i + k] / 65535) * (high[k] - low[k]));
      const [px, py] = toScreen(view, area, point);
      if (!isInside(area, [px, py])) continue;
      const [r, g, b] = this.colours.subarray(4 * levels[i], 4 * levels[i] + 3);
      context.fillStyle = `rgba(${r}, ${g}, ${b}, 0.7)`;
      context.fillRect(px - size / 2, py - size / 2, size, size);
    }
  }

  // Draw axes, curve and drawings, by default on the foremost canvas.
  drawFront(context = clearedContext(this.front)) {
    this.drawAxes(context);
    clipTo(context, this.area);
    if (this.curve) this.drawCurve(context);
    for (const { at, colour, name } of this.states) {
      const place = this.on.place(at);
      if (!place) continue;
      const [x, y] = this.toScreen(place);
      // In a histogram, dots stand on the axis.
      drawDot(context, [x, this.isSquare ? y : y - 11], 8, colour, "#ffffff", name);
    }
    if (this.drawn.length) this.drawShape(context);
    if (this.mark) this.drawMark(context, this.mark);
    if (this.cursor) this.drawMark(context, this.cursor);
    context.restore();
  }

  // Draw the distribution with a band of one standard error.
  drawCurve(context) {
    const { coordinate, density, error } = this.curve;
    const at = (i, sign) => this.toScreen([coordinate[i], Math.max(0, density[i] + sign * error[i])]);
    const line = (sign) => Array.from(density, (_, i) => at(i, sign));
    context.strokeStyle = "transparent";
    strokeLine(context, [...line(1), ...line(-1).reverse()], true);
    context.globalAlpha = 0.22;
    context.fillStyle = themeColour("--accent");
    context.fill();
    context.globalAlpha = 1;
    context.strokeStyle = themeColour("--accent");
    context.lineWidth = 2.4;
    strokeLine(context, line(0));
  }

  drawAxes(context) {
    const { left, top, width, height } = this.area;
    const bottom = top + height;
    context.strokeStyle = themeColour("--soft");
    context.fillStyle = themeColour("--soft");
    context.lineWidth = 1;
    context.strokeRect(left, top, width, height);
    context.font = `12px ${themeColour("--sans")}`;
    context.textAlign = "center";
    for (const x of ticks(this.view.x, width / 80)) {
      const [px] = this.toScreen([x, 0]);
      strokeLine(context, [
        [px, bottom],
        [px, bottom + 4],
      ]);
      context.fillText(tickLabel(x), px, bottom + 16);
    }
    context.textAlign = "right";
    for (const y of ticks(this.view.y, height / 50)) {
      const [, py] = this.toScreen([0, y]);
      strokeLine(context, [
        [left - 4, py],
        [left, py],
      ]);
      context.fillText(tickLabel(y), left - 7, py + 4);
    }
    context.textAlign = "center";
    context.fillText(this.titles[0], left + width / 2, bottom + 33);
    context.save();
    context.translate(14, top + height / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(this.titles[1], 0, 0);
    context.restore();
  }

  // Draw the lasso, path or pair of points.
  drawShape(context) {
    const [accent, card] = ["--accent", "--card"].map(themeColour);
    const shape = this.drawn.map((p) => this.toScreen(p));
    context.lineJoin = "round";
    for (const [colour, width] of [
      [card, 5],
      [accent, 2.2],
    ]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      strokeLine(context, shape, this.mode === "lasso" && !this.dragging);
    }
    if (this.mode === "lasso") {
      context.globalAlpha = 0.12;
      context.fillStyle = accent;
      context.fill();
      context.globalAlpha = 1;
      return;
    }
    shape.forEach((p, i) => {
      drawDot(context, p, this.mode === "compare" ? 9 : 5.5, accent, card, this.mode === "compare" ? "AB"[i] : "");
    });
  }

  drawMark(context, place) {
    const [ink, card] = ["--ink", "--card"].map(themeColour);
    const [x, y] = this.toScreen(place);
    drawDot(context, [x, y], 6.5, ink, card, "");
    context.strokeStyle = ink;
    context.lineWidth = 1;
    for (const [dx, dy] of [
      [1, 0],
      [-1, 0],
      [0, 1],
      [0, -1],
    ])
      strokeLine(context, [
        [x + 8 * dx, y + 8 * dy],
        [x + 16 * dx, y + 16 * dy],
      ]);
  }

  // ------------------------------------------------------------ the mouse

  listen() {
    const canvas = this.front;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("dblclick", () => this.endPath());
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.moveTo(zoomed(this.view, this.toPlane(this.pixelOf(event)), Math.exp(0.0015 * event.deltaY)));
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => this.pressKey(event));
  }

  // Arrows move a cursor, Enter clicks there, F finishes a lasso or path, plus and minus zoom, Escape starts anew.
  pressKey(event) {
    if (!this.points || event.altKey || event.metaKey || event.ctrlKey) return;
    const { x, y } = this.view;
    const [dx, dy] = [(x[1] - x[0]) / STEPS, (y[1] - y[0]) / STEPS];
    const move = (right, up) => () => {
      const [px, py] = this.cursor ?? [(x[0] + x[1]) / 2, (y[0] + y[1]) / 2];
      this.cursor = [Math.min(Math.max(px + right * dx, x[0]), x[1]), Math.min(Math.max(py + up * dy, y[0]), y[1])];
      this.redrawFront();
    };
    const zoom = (factor) => () => this.moveTo(zoomed(this.view, this.cursor ?? [0, 0], factor));
    const work = {
      ArrowLeft: move(-1, 0),
      ArrowRight: move(1, 0),
      ArrowUp: move(0, 1),
      ArrowDown: move(0, -1),
      Enter: () => this.cursor && this.click(this.cursor),
      f: () => this.finish(),
      "+": zoom(0.8),
      "=": zoom(0.8),
      "-": zoom(1.25),
      0: () => this.resetView(),
      Escape: () => {
        this.cursor = null;
        this.setMode(this.mode);
      },
    }[event.key];
    if (!work) return;
    event.preventDefault();
    work();
    this.redrawFront();
  }

  // Finish a lasso or a path of clicked points.
  finish() {
    if (this.mode === "lasso" && this.drawn.length > 2) this.on.lasso(this.drawn);
    else if (this.mode === "path" && this.open && this.drawn.length > 1) this.on.path(this.drawn);
    this.open = false;
  }

  pixelOf(event) {
    const box = this.front.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  press(event) {
    if (event.button !== 0 || !this.points) return;
    this.front.setPointerCapture(event.pointerId);
    this.pressed = { at: this.pixelOf(event), view: this.view, moved: false };
    if (this.mode === "lasso" && !event.shiftKey) {
      this.drawn = [this.toPlane(this.pressed.at)];
      this.dragging = true;
    }
  }

  drag(event) {
    if (!this.pressed) return;
    const now = this.pixelOf(event);
    const { at, view } = this.pressed;
    const shift = [now[0] - at[0], now[1] - at[1]];
    if (Math.hypot(...shift) > MIN_DRAG) this.pressed.moved = true;
    if (this.dragging) {
      const last = this.toScreen(this.drawn[this.drawn.length - 1]);
      if (Math.hypot(now[0] - last[0], now[1] - last[1]) > MIN_DRAG) this.drawn.push(this.toPlane(now));
      this.redrawFront();
    } else if (this.pressed.moved) this.moveTo(panned(view, this.area, shift));
  }

  release(event) {
    if (!this.pressed) return;
    const { moved } = this.pressed;
    this.pressed = null;
    if (this.dragging) {
      this.dragging = false;
      this.drawn = thinned(this.drawn, MAX_CORNERS);
      if (this.drawn.length > 2) this.on.lasso(this.drawn);
      else this.drawn = [];
    } else if (!moved) this.click(this.toPlane(this.pixelOf(event)));
    this.redrawFront();
  }

  click(point) {
    if (this.mode === "inspect") {
      this.mark = point;
      this.on.inspect(point);
    } else if (this.mode === "path" || this.mode === "lasso") {
      if (!this.open) this.drawn = [];
      this.open = true;
      this.drawn.push(point);
    } else if (this.mode === "compare") {
      if (this.drawn.length > 1) this.drawn = [];
      this.drawn.push(point);
      if (this.drawn.length === 2) this.on.compare(...this.drawn);
    }
  }

  endPath() {
    if (this.mode !== "path" || !this.open) return;
    // The two clicks of a double-click have set two points at one place.
    this.drawn.pop();
    this.open = false;
    if (this.drawn.length > 1) this.on.path(this.drawn);
    this.redrawFront();
  }

  // Show a part of the plane, with fewer points until it rests.
  moveTo(view) {
    this.view = view;
    this.whole = null;
    clearTimeout(this.moving);
    this.moving = setTimeout(() => {
      this.moving = null;
      this.redraw();
    }, REST);
    this.redraw();
  }
}

// Draw inside an area only, until the context is restored.
function clipTo(context, { left, top, width, height }) {
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
}

function drawDot(context, [x, y], radius, colour, rim, text) {
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.fillStyle = colour;
  context.fill();
  context.lineWidth = 2;
  context.strokeStyle = rim;
  context.stroke();
  if (text) {
    context.font = `600 ${Math.round(1.4 * radius)}px sans-serif`;
    context.fillStyle = "#ffffff";
    context.textAlign = "center";
    context.fillText(text, x, y + radius / 2);
  }
}
