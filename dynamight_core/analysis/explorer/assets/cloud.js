// Particles in the space of three motions: points by WebGL that turn, and axes in front.

import { clearedContext, fitCanvas, oncePerFrame, strokeLine } from "./canvas.js";
import { PLAIN_POINT, palette } from "./colours.js";
import { themeColour } from "./dom.js";
import { tickLabel } from "./format.js";
import { product, rotationAbout } from "./geometry.js";
import { listenToTurns } from "./orbit.js";
import { pointStyle, ticks } from "./plane.js";
import { CLOUD_VERTEX, POINT_FRAGMENT } from "./shaders.js";
import { bindAttribute, compileProgram, openGl, setPalette } from "./webgl.js";

// Most points that are drawn without WebGL, and among which the one under the mouse is looked for.
const MAX_DRAWN = 20000;
// Pixels from a click to the particle that it means.
const NEAR = 14;
// First view: from above and aside, with the third motion upwards.
const [ASIDE, ACROSS] = [Math.cos(0.52), Math.sin(0.52)];
const FIRST_ROTATION = product(rotationAbout(0, -1.2), [ASIDE, ACROSS, 0, -ACROSS, ASIDE, 0, 0, 0, 1]);

export class Cloud {
  // `inspect(point)` is called with the place of the particle that was clicked.
  constructor(container, inspect) {
    [this.middle, this.front] = container.querySelectorAll("canvas");
    this.inspect = inspect;
    this.points = null;
    this.mark = null;
    this.titles = ["", "", ""];
    this.redraw = oncePerFrame(() => this.draw());
    this.gl = openGl(this.middle);
    if (this.gl) {
      this.program = compileProgram(this.gl, CLOUD_VERTEX, POINT_FRAGMENT);
      [this.places, this.levels] = [this.gl.createBuffer(), this.gl.createBuffer()];
      this.texture = this.gl.createTexture();
    }
    this.resetView();
    listenToTurns(this.front, this, { click: (event) => this.click(event.offsetX, event.offsetY) });
    this.front.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.click(this.front.clientWidth / 2, this.front.clientHeight / 2, Infinity);
    });
    new ResizeObserver(this.redraw).observe(container);
  }

  get canvases() {
    return [this.middle];
  }

  // Show points: places are 0 to 65535 from `low` to `high`.
  setPoints({ low, high, places, particles }) {
    this.points = { low, high, places, total: particles, n: places.length / 3 };
    this.setLevels(new Uint8Array(this.points.n), null);
    if (!this.gl) return;
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.places);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, places, this.gl.STATIC_DRAW);
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

  setMark(point) {
    this.mark = point;
    this.redraw();
  }

  resetView() {
    this.rotation = FIRST_ROTATION;
    this.zoom = 1;
    this.redraw();
  }

  reset() {
    this.resetView();
  }

  turned() {
    this.redraw();
  }

  // Return the pixels of a place, and its depth towards the eye.
  toScreen(place) {
    const { centre, scale, width, height } = this.frame;
    const p = place.map((v, a) => v - centre[a]);
    const [x, y, z] = [0, 3, 6].map(
      (r) => this.rotation[r] * p[0] + this.rotation[r + 1] * p[1] + this.rotation[r + 2] * p[2],
    );
    return [width / 2 + scale * x, height / 2 - scale * y, z];
  }

  // Where the box of the points is on the canvas: an Å is as long on all axes.
  get frame() {
    const { width, height } = this.front.getBoundingClientRect();
    const { low, high } = this.points;
    const radius = Math.hypot(...low.map((v, a) => high[a] - v)) / 2 || 1;
    const centre = low.map((v, a) => (v + high[a]) / 2);
    return { centre, radius, width, height, scale: (0.47 * this.zoom * Math.min(width, height)) / radius };
  }

  placeOf(i) {
    const { low, high, places } = this.points;
    return low.map((v, a) => v + (places[3 * i + a] / 65535) * (high[a] - v));
  }

  // ------------------------------------------------------------ drawing

  draw() {
    if (!this.points || !this.front.clientWidth) return;
    if (this.gl) this.drawPoints();
    else this.drawFlatPoints();
    this.drawFront();
  }

  drawPoints() {
    fitCanvas(this.middle);
    const { gl, frame, points } = this;
    const at = this.program.places;
    const ratio = window.devicePixelRatio || 1;
    const { size, opacity } = pointStyle(points.n);
    gl.viewport(0, 0, this.middle.width, this.middle.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.useProgram(this.program.made);
    bindAttribute(gl, at.place, this.places, 3, gl.UNSIGNED_SHORT, true);
    bindAttribute(gl, at.level, this.levels, 1, gl.UNSIGNED_BYTE, true);
    gl.uniform3f(at.low, ...points.low);
    gl.uniform3f(at.high, ...points.high);
    gl.uniform3f(at.centre, ...frame.centre);
    gl.uniformMatrix3fv(at.rotation, true, this.rotation);
    gl.uniform2f(at.scale, (2 * frame.scale) / frame.width, (2 * frame.scale) / frame.height);
    gl.uniform1f(at.size, size * ratio);
    gl.uniform1f(at.opacity, opacity);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.drawArrays(gl.POINTS, 0, points.n);
  }

  drawFlatPoints() {
    const context = clearedContext(this.middle);
    const { levels, n } = this.points;
    const { size } = pointStyle(n);
    for (let i = 0; i < Math.min(n, MAX_DRAWN); i++) {
      const [px, py] = this.toScreen(this.placeOf(i));
      const [r, g, b] = this.colours.subarray(4 * levels[i], 4 * levels[i] + 3);
      context.fillStyle = `rgba(${r}, ${g}, ${b}, 0.7)`;
      context.fillRect(px - size / 2, py - size / 2, size, size);
    }
  }

  // Draw axes from the corner of the box, and the mark, by default on the foremost canvas.
  drawFront(context = clearedContext(this.front)) {
    const { low, high } = this.points;
    context.strokeStyle = context.fillStyle = themeColour("--soft");
    context.lineWidth = 1;
    context.font = `12px ${themeColour("--sans")}`;
    context.textAlign = "center";
    [0, 1, 2].forEach((axis) => {
      const along = (v, out = 0) => low.map((l, a) => (a === axis ? v : l - out * (high[a] - l)));
      strokeLine(context, [this.toScreen(low), this.toScreen(along(high[axis]))]);
      for (const value of ticks([low[axis], high[axis]], 4)) {
        strokeLine(context, [this.toScreen(along(value)), this.toScreen(along(value, 0.02))]);
        const [x, y] = this.toScreen(along(value, 0.06));
        context.fillText(tickLabel(value), x, y + 4);
      }
      const [x, y] = this.toScreen(along(high[axis] + 0.1 * (high[axis] - low[axis])));
      context.fillText(this.titles[axis], Math.min(Math.max(x, 60), this.front.clientWidth - 60), y + 4);
    });
    if (!this.mark) return;
    const [x, y] = this.toScreen(this.mark);
    context.beginPath();
    context.arc(x, y, 6.5, 0, 7);
    context.fillStyle = themeColour("--ink");
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = themeColour("--card");
    context.stroke();
  }

  // Inspect the foremost particle near a place of the canvas.
  click(x, y, near = NEAR) {
    if (!this.points) return;
    let best = null;
    for (let i = 0; i < Math.min(this.points.n, MAX_DRAWN); i++) {
      const [px, py, z] = this.toScreen(this.placeOf(i));
      const distance = Math.hypot(px - x, py - y);
      if (distance > near) continue;
      const order = near === Infinity ? distance : -z;
      if (!best || order < best.order) best = { i, order };
    }
    if (!best) return;
    this.setMark(this.placeOf(best.i));
    this.inspect(this.mark);
  }
}
