"use strict";
// Particles in the plane of two motions: a raster behind, points by WebGL, axes and what is drawn by hand above.

const POINT_VERTEX = `
in vec2 place; in float level;
uniform vec2 low, high, viewLow, viewHigh; uniform float size; uniform sampler2D colours;
out vec3 colour;
void main() {
  vec2 p = low + place * (high - low);
  gl_Position = vec4(2.0 * (p - viewLow) / (viewHigh - viewLow) - 1.0, 0.0, 1.0);
  gl_PointSize = size;
  colour = texture(colours, vec2((level * 255.0 + 0.5) / 256.0, 0.5)).rgb;
}`;
const POINT_FRAGMENT = `
in vec3 colour; uniform float opacity; out vec4 shown;
void main() {
  float r = length(gl_PointCoord - 0.5);
  if (r > 0.5) discard;
  shown = vec4(colour, opacity);
}`;
const MARGIN = { left: 58, right: 14, top: 12, bottom: 40 };
// Without WebGL so many points are drawn, and not more.
const FEW_POINTS = 20000;
// While the plane moves so many points are drawn, the first ones of a random order, and all when it rests.
const MOVING_POINTS = 40000, REST = 200;

class Landscape {
  constructor(container, on) {
    [this.back, this.middle, this.front] = container.querySelectorAll("canvas");
    this.on = on;
    this.mode = "look";
    this.points = null;
    this.raster = null;
    this.drawn = [];
    this.mark = null;
    this.titles = ["", ""];
    this.view = { x: [-1, 1], y: [-1, 1] };
    this.redraw = oncePerFrame(() => this.draw());
    // What is drawn by hand follows the mouse; hundreds of thousands of points need not be drawn anew for it.
    this.redrawFront = oncePerFrame(() => this.points && this.drawFront(this.frame(), window.devicePixelRatio || 1));
    this.gl = openGl(this.middle);
    if (this.gl) this.prepare();
    this.listen();
    new ResizeObserver(this.redraw).observe(container);
  }

  prepare() {
    const gl = this.gl;
    this.program = program(gl, POINT_VERTEX, POINT_FRAGMENT);
    [this.places, this.levels] = [gl.createBuffer(), gl.createBuffer()];
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
  }

  setPoints({ low, high, places }) {
    this.points = { low, high, places, n: places.length / 2 };
    this.setLevels(new Uint8Array(this.points.n), null);
    if (this.gl) {
      this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.places);
      this.gl.bufferData(this.gl.ARRAY_BUFFER, places, this.gl.STATIC_DRAW);
    }
  }

  setLevels(levels, colours) {
    this.points.levels = levels;
    this.colours = colours || palette(["#57707f", "#57707f"], null, "#57707f");
    if (this.gl) {
      const gl = this.gl;
      gl.bindBuffer(gl.ARRAY_BUFFER, this.levels);
      gl.bufferData(gl.ARRAY_BUFFER, levels, gl.STATIC_DRAW);
      gl.bindTexture(gl.TEXTURE_2D, this.texture);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, this.colours);
    }
    this.redraw();
  }

  setRaster(raster) {
    this.raster = raster;
    this.redraw();
  }

  // Show all particles.
  reset() {
    const { low, high } = this.points;
    [this.view.x, this.view.y] = [0, 1].map((i) => {
      const room = 0.04 * (high[i] - low[i]) || 1;
      return [low[i] - room, high[i] + room];
    });
    this.redraw();
  }

  // ------------------------------------------------------------ drawing

  frame() {
    const { width, height } = this.front.getBoundingClientRect();
    return { left: MARGIN.left, top: MARGIN.top, width: Math.max(10, width - MARGIN.left - MARGIN.right),
      height: Math.max(10, height - MARGIN.top - MARGIN.bottom) };
  }
  toScreen([x, y]) {
    const f = this.frame();
    const [[x0, x1], [y0, y1]] = [this.view.x, this.view.y];
    return [f.left + ((x - x0) / (x1 - x0)) * f.width, f.top + ((y1 - y) / (y1 - y0)) * f.height];
  }
  toPlane([px, py]) {
    const f = this.frame();
    const [[x0, x1], [y0, y1]] = [this.view.x, this.view.y];
    return [x0 + ((px - f.left) / f.width) * (x1 - x0), y1 - ((py - f.top) / f.height) * (y1 - y0)];
  }

  draw() {
    if (!this.points) return;
    const ratio = window.devicePixelRatio || 1;
    const f = this.frame();
    this.drawRaster(f, ratio);
    this.drawPoints(f, ratio);
    this.drawFront(f, ratio);
  }

  clear(canvas, ratio) {
    fit(canvas);
    const c = canvas.getContext("2d");
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, canvas.width, canvas.height);
    return c;
  }

  drawRaster(f, ratio) {
    const c = this.clear(this.back, ratio);
    if (!this.raster) return;
    const { x, y, image } = this.raster;
    const [[left, bottom], [right, top]] = [this.toScreen([x[0], y[0]]), this.toScreen([x[1], y[1]])];
    c.save();
    c.beginPath();
    c.rect(f.left, f.top, f.width, f.height);
    c.clip();
    c.imageSmoothingEnabled = true;
    c.drawImage(image, left, top, right - left, bottom - top);
    c.restore();
  }

  drawPoints(f, ratio) {
    const { low, high, places, levels, n } = this.points;
    const size = Math.min(6, Math.max(1.6, 260 / Math.sqrt(n + 1)));
    const opacity = Math.min(0.85, Math.max(0.25, 60 / Math.sqrt(n + 1)));
    if (!this.gl) return this.drawFewPoints(f, ratio, size);
    fit(this.middle);
    const { gl, program: { made, places: at } } = this;
    gl.clearColor(0, 0, 0, 0);
    gl.disable(gl.SCISSOR_TEST);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (this.hidden) return;
    const bottom = this.middle.height - (f.top + f.height) * ratio;
    const box = [f.left * ratio, bottom, f.width * ratio, f.height * ratio];
    gl.viewport(...box);
    gl.scissor(...box);
    gl.enable(gl.SCISSOR_TEST);
    gl.enable(gl.BLEND);
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.useProgram(made);
    attribute(gl, at.place, this.places, 2, gl.UNSIGNED_SHORT, true);
    attribute(gl, at.level, this.levels, 1, gl.UNSIGNED_BYTE, true);
    gl.uniform2f(at.low, ...low);
    gl.uniform2f(at.high, ...high);
    gl.uniform2f(at.viewLow, this.view.x[0], this.view.y[0]);
    gl.uniform2f(at.viewHigh, this.view.x[1], this.view.y[1]);
    gl.uniform1f(at.size, size * ratio);
    gl.uniform1f(at.opacity, opacity);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.drawArrays(gl.POINTS, 0, this.moving ? Math.min(n, MOVING_POINTS) : n);
  }

  drawFewPoints(f, ratio, size) {
    const c = this.clear(this.middle, ratio);
    const { low, high, places, levels, n } = this.points;
    if (this.hidden) return;
    for (let i = 0; i < Math.min(n, FEW_POINTS); i++) {
      const [px, py] = this.toScreen([0, 1].map((k) => low[k] + (places[2 * i + k] / 65535) * (high[k] - low[k])));
      if (px < f.left || px > f.left + f.width || py < f.top || py > f.top + f.height) continue;
      const [r, g, b] = this.colours.subarray(4 * levels[i], 4 * levels[i] + 3);
      c.fillStyle = `rgba(${r}, ${g}, ${b}, 0.7)`;
      c.fillRect(px - size / 2, py - size / 2, size, size);
    }
  }

  drawFront(f, ratio) {
    const c = this.clear(this.front, ratio);
    const [ink, soft, accent, card] = ["--ink", "--soft", "--accent", "--card"].map(themeColour);
    c.strokeStyle = soft;
    c.fillStyle = soft;
    c.lineWidth = 1;
    c.strokeRect(f.left, f.top, f.width, f.height);
    c.font = "12px " + themeColour("--sans");
    c.textAlign = "center";
    for (const x of ticks(this.view.x, f.width / 80)) {
      const [px] = this.toScreen([x, 0]);
      line(c, [[px, f.top + f.height], [px, f.top + f.height + 4]]);
      c.fillText(label(x), px, f.top + f.height + 16);
    }
    c.textAlign = "right";
    for (const y of ticks(this.view.y, f.height / 50)) {
      const [, py] = this.toScreen([0, y]);
      line(c, [[f.left - 4, py], [f.left, py]]);
      c.fillText(label(y), f.left - 7, py + 4);
    }
    c.textAlign = "center";
    c.fillText(this.titles[0], f.left + f.width / 2, f.top + f.height + 33);
    c.save();
    c.translate(14, f.top + f.height / 2);
    c.rotate(-Math.PI / 2);
    c.fillText(this.titles[1], 0, 0);
    c.restore();
    c.save();
    c.beginPath();
    c.rect(f.left, f.top, f.width, f.height);
    c.clip();
    const shape = this.drawn.map((p) => this.toScreen(p));
    if (shape.length) {
      c.lineJoin = "round";
      for (const [colour, width] of [[card, 5], [accent, 2.2]]) {
        c.strokeStyle = colour;
        c.lineWidth = width;
        line(c, shape, this.mode === "lasso" && !this.dragging);
      }
      if (this.mode === "lasso") {
        c.globalAlpha = 0.12;
        c.fillStyle = accent;
        c.fill();
        c.globalAlpha = 1;
      } else shape.forEach((p, i) => dot(c, p, 5.5, accent, card, this.mode === "two" ? "AB"[i] : ""));
    }
    if (this.mark) {
      const p = this.toScreen(this.mark);
      dot(c, p, 6.5, ink, card, "");
      c.strokeStyle = ink;
      c.lineWidth = 1;
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]])
        line(c, [[p[0] + 8 * dx, p[1] + 8 * dy], [p[0] + 16 * dx, p[1] + 16 * dy]]);
    }
    c.restore();
  }

  // ------------------------------------------------------------ the mouse

  // Draw the plane as it moves.
  move() {
    clearTimeout(this.moving);
    this.moving = setTimeout(() => { this.moving = null; this.redraw(); }, REST);
    this.redraw();
  }

  setMode(mode) {
    this.mode = mode;
    this.drawn = [];
    this.open = false;
    this.redrawFront();
  }

  listen() {
    const canvas = this.front;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let start = null, moved = false, view = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.points) return;
      canvas.setPointerCapture(event.pointerId);
      [start, moved, view] = [at(event), false, structuredClone(this.view)];
      if (this.mode === "lasso" && !event.shiftKey) {
        this.drawn = [this.toPlane(start)];
        this.dragging = true;
      }
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!start) return;
      const now = at(event);
      if (Math.hypot(now[0] - start[0], now[1] - start[1]) > 4) moved = true;
      if (this.dragging) {
        const last = this.toScreen(this.drawn[this.drawn.length - 1]);
        if (Math.hypot(now[0] - last[0], now[1] - last[1]) > 4) this.drawn.push(this.toPlane(now));
      } else if (moved) {
        const f = this.frame();
        const shift = [((now[0] - start[0]) / f.width) * (view.x[1] - view.x[0]),
          -((now[1] - start[1]) / f.height) * (view.y[1] - view.y[0])];
        this.view = { x: view.x.map((v) => v - shift[0]), y: view.y.map((v) => v - shift[1]) };
        this.move();
        return;
      }
      this.redrawFront();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!start) return;
      const place = this.toPlane(at(event));
      start = null;
      if (this.dragging) {
        this.dragging = false;
        this.drawn = thinned(this.drawn, 80);
        if (this.drawn.length > 2) this.on.lasso(this.drawn);
        else this.drawn = [];
      } else if (!moved) this.click(place);
      this.redrawFront();
    });
    canvas.addEventListener("dblclick", () => {
      if (this.mode !== "path" || !this.open) return;
      // Its two clicks have set two points at one place.
      this.drawn.pop();
      this.open = false;
      if (this.drawn.length > 1) this.on.path(this.drawn);
      this.redrawFront();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const factor = Math.exp(0.0015 * event.deltaY);
      const [x, y] = this.toPlane(at(event));
      this.view = { x: this.view.x.map((v) => x + (v - x) * factor), y: this.view.y.map((v) => y + (v - y) * factor) };
      this.move();
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.setMode(this.mode);
    });
  }

  click(place) {
    if (this.mode === "look") {
      this.mark = place;
      this.on.look(place);
    } else if (this.mode === "path") {
      if (!this.open) this.drawn = [];
      this.open = true;
      this.drawn.push(place);
    } else if (this.mode === "two") {
      if (this.drawn.length > 1) this.drawn = [];
      this.drawn.push(place);
      if (this.drawn.length === 2) this.on.two(...this.drawn);
    }
  }
}

// Return round values inside a range, about n of them.
function ticks([low, high], n) {
  const step = (high - low) / Math.max(2, n);
  const power = 10 ** Math.floor(Math.log10(step));
  const round = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= step);
  const out = [];
  for (let i = Math.ceil(low / round); i * round <= high; i++) out.push(i * round);
  return out;
}
const label = (value) => String(Number(value.toPrecision(6))).replace("-", "−");

function line(c, points, closed = false) {
  c.beginPath();
  points.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
  if (closed) c.closePath();
  c.stroke();
}

function dot(c, [x, y], radius, colour, rim, text) {
  c.beginPath();
  c.arc(x, y, radius, 0, 7);
  c.fillStyle = colour;
  c.fill();
  c.lineWidth = 2;
  c.strokeStyle = rim;
  c.stroke();
  if (text) {
    c.font = "bold 13px sans-serif";
    c.fillText(text, x, y - 10);
  }
}

// Return at most n of the points of a line, evenly.
function thinned(points, n) {
  if (points.length <= n) return points;
  return Array.from({ length: n }, (_, i) => points[Math.round((i * (points.length - 1)) / (n - 1))]);
}
