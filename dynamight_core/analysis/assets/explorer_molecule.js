"use strict";
// The molecule in three dimensions: surfaces of densities, the field as arrows, points, and the atomic model's trace.

const MESH_VERTEX = `
in vec3 position; in vec3 normal; in float value;
uniform mat3 turn; uniform vec3 middle; uniform vec2 scale; uniform float depth;
out vec3 n; out float v; out float far;
void main() {
  vec3 p = turn * (position - middle);
  gl_Position = vec4(p.xy * scale, -p.z * depth, 1.0);
  n = turn * normal; v = value; far = -p.z * depth;
}`;
const SHADE = `
uniform sampler2D colours; uniform vec3 plain; uniform float plainShare, opacity; uniform vec3 ground;
vec3 lit(vec3 base, vec3 n, float far) {
  float key = max(dot(n, normalize(vec3(0.35, 0.55, 0.75))), 0.0);
  float fill = max(dot(n, normalize(vec3(-0.6, -0.2, 0.4))), 0.0);
  float shine = pow(max(dot(n, normalize(vec3(0.2, 0.32, 0.93))), 0.0), 30.0);
  vec3 c = base * (0.42 + 0.58 * key + 0.16 * fill) + 0.14 * shine;
  return mix(c, ground, clamp(0.25 * (far + 0.4), 0.0, 0.3));
}
vec3 coloured(float v) { return mix(texture(colours, vec2((v * 254.0 + 0.5) / 256.0, 0.5)).rgb, plain, plainShare); }`;
const MESH_FRAGMENT = `
in vec3 n; in float v; in float far; out vec4 shown;` + SHADE + `
void main() {
  vec3 m = normalize(n);
  float rim = opacity < 1.0 ? opacity + (1.0 - opacity) * 0.8 * pow(1.0 - abs(m.z), 2.0) : 1.0;
  shown = vec4(lit(coloured(v), m, far), rim);
}`;
const BALL_VERTEX = `
in vec3 position; in float radius; in float value;
uniform mat3 turn; uniform vec3 middle; uniform vec2 scale; uniform float depth, pixels;
out float v; out float far;
void main() {
  vec3 p = turn * (position - middle);
  gl_Position = vec4(p.xy * scale, -p.z * depth, 1.0);
  gl_PointSize = max(2.0, 2.0 * radius * scale.y * pixels);
  v = value; far = -p.z * depth;
}`;
const BALL_FRAGMENT = `
in float v; in float far; out vec4 shown;` + SHADE + `
void main() {
  vec2 p = 2.0 * gl_PointCoord - 1.0;
  float r = dot(p, p);
  if (r > 1.0) discard;
  vec3 m = vec3(p.x, -p.y, sqrt(1.0 - r));
  shown = vec4(lit(coloured(v), m, far), opacity < 1.0 ? opacity * (0.35 + 0.65 * r) : 1.0);
}`;
const N_ARROWS = 170;

class Molecule {
  constructor(container) {
    this.canvas = container.querySelector("canvas");
    this.show = { surface: true, arrows: true, errors: false, points: false, trace: true };
    this.turn = [1, 0, 0, 0, 1, 0, 0, 0, 1];
    this.zoom = 1;
    this.surfaces = [];
    this.redraw = oncePerFrame(() => this.draw());
    this.gl = openGl(this.canvas);
    if (this.gl) this.prepare();
    this.listen();
    new ResizeObserver(this.redraw).observe(container);
  }

  prepare() {
    const gl = this.gl;
    this.mesh = program(gl, MESH_VERTEX, MESH_FRAGMENT);
    this.ball = program(gl, BALL_VERTEX, BALL_FRAGMENT);
    this.buffers = Array.from({ length: 4 }, () => gl.createBuffer());
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, palette(MOTION, null, "#888888"));
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
  }

  // What is known of the run once: where points are and how they move.
  setParts({ rest, motions, error, view, trace, trace_motions: traceMotions, trace_starts: starts }) {
    const n = rest.length / 3;
    this.parts = { rest, motions, error, n, moved: new Float32Array(3 * n), sizes: new Float32Array(n) };
    this.chosen = spreadOut(rest, N_ARROWS);
    if (trace) this.trace = { rest: trace, motions: traceMotions, starts, moved: new Float32Array(trace.length) };
    this.home = Array.from(view);
    this.turn = [...this.home];
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    for (let i = 0; i < n; i++) for (let a = 0; a < 3; a++) {
      low[a] = Math.min(low[a], rest[3 * i + a]);
      high[a] = Math.max(high[a], rest[3 * i + a]);
    }
    this.middle = low.map((v, a) => (v + high[a]) / 2);
    this.radius = Math.hypot(...low.map((v, a) => high[a] - v)) / 2;
  }

  // Move points, arrows and model to a conformation: coordinates relative to the mean one.
  setCoordinates(at) {
    move(this.parts, at);
    const { rest, moved, sizes, n } = this.parts;
    let top = 0;
    for (let i = 0; i < n; i++) {
      sizes[i] = Math.hypot(moved[3 * i] - rest[3 * i], moved[3 * i + 1] - rest[3 * i + 1], moved[3 * i + 2] - rest[3 * i + 2]);
      top = Math.max(top, sizes[i]);
    }
    this.top = Math.max(top, 1e-3);
    if (this.trace) move(this.trace, at);
    this.redraw();
  }

  // Show surfaces of volumes: { volume, level, spacing, first, plain, opacity, values }.
  setSurfaces(volumes) {
    this.surfaces = this.gl ? volumes.map(makeSurface) : [];
    this.redraw();
  }

  // ------------------------------------------------------------ drawing

  draw() {
    if (!this.parts) return;
    if (!this.gl) return this.drawFlat();
    const gl = this.gl;
    fit(this.canvas);
    const { width, height } = this.canvas;
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    const { rest, moved, sizes, n, error } = this.parts;
    const dark = isDark();
    if (this.show.arrows && this.surfaces.every((s) => !s.pair)) {
      const arrows = needles(this.chosen, rest, moved, sizes, this.top, Math.max(0.9, this.radius / 70));
      this.drawMesh(arrows, { plain: dark ? [0.93, 0.95, 0.96] : [0.13, 0.16, 0.18], plainShare: 0.82, opacity: 1 });
    }
    if (this.show.trace && this.trace) {
      const chain = rods(this.trace.moved, this.trace.starts, 1.1);
      this.drawMesh(chain, { plain: [0.85, 0.45, 0.2], plainShare: 1, opacity: 1 });
    }
    if (this.show.points) {
      const values = Float32Array.from(sizes, (s) => s / this.top);
      this.drawBalls(moved, new Float32Array(n).fill(this.radius / 45), values, { opacity: 1, plainShare: 0 });
    }
    const solid = this.show.surface ? this.surfaces.filter((s) => s.opacity >= 1) : [];
    // Arrows, points and models lie inside: with them the density is glass.
    const inside = (this.show.arrows && this.top > 0.3) || this.show.points || this.show.errors || (this.show.trace && this.trace);
    const pair = this.surfaces.some((s) => s.pair);
    for (const surface of solid)
      if (pair || !inside) this.drawMesh(surface, surface);
    if (this.show.errors) {
      const places = new Float32Array(3 * this.chosen.length), radii = new Float32Array(this.chosen.length);
      this.chosen.forEach((i, k) => { places.set(moved.subarray(3 * i, 3 * i + 3), 3 * k); radii[k] = error[i]; });
      gl.depthMask(false);
      this.drawBalls(places, radii, new Float32Array(radii.length), { opacity: 0.5, plain: [0.78, 0.36, 0.2], plainShare: 1 });
      gl.depthMask(true);
    }
    if (this.show.surface)
      for (const surface of this.surfaces.filter((s) => s.opacity < 1 || (!pair && inside))) this.drawGlass(surface);
  }

  // First into the depth alone, so that only the foremost layer is seen.
  drawGlass(surface) {
    const gl = this.gl;
    gl.colorMask(false, false, false, false);
    this.drawMesh(surface, { ...surface, opacity: 1 });
    gl.colorMask(true, true, true, true);
    gl.depthFunc(gl.LEQUAL);
    this.drawMesh(surface, { ...surface, opacity: Math.min(surface.opacity, isDark() ? 0.62 : 0.5) });
    gl.depthFunc(gl.LESS);
  }

  place(at) {
    const gl = this.gl;
    const { width, height } = this.canvas;
    const scale = (1.3 * this.zoom) / this.radius;
    const small = Math.min(width, height);
    gl.uniformMatrix3fv(at.turn, true, this.turn);
    gl.uniform3fv(at.middle, this.middle);
    gl.uniform2f(at.scale, (scale * small) / width, (scale * small) / height);
    gl.uniform1f(at.depth, 0.4 / this.radius);
  }

  paint(at, { plain = [0, 0, 0], plainShare = 0, opacity = 1 }) {
    const gl = this.gl;
    gl.uniform3fv(at.plain, plain);
    gl.uniform1f(at.plainShare, plainShare);
    gl.uniform1f(at.opacity, opacity);
    gl.uniform3fv(at.ground, rgb(themeColour("--card")).map((v) => v / 255));
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
  }

  drawMesh(mesh, look) {
    const { gl, mesh: { made, places: at } } = this;
    gl.useProgram(made);
    this.place(at);
    this.paint(at, look);
    [["position", mesh.positions, 3], ["normal", mesh.normals, 3], ["value", mesh.values, 1]].forEach(([name, data, size], i) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[i]);
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
      attribute(gl, at[name], this.buffers[i], size);
    });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers[3]);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.triangles, gl.DYNAMIC_DRAW);
    gl.drawElements(gl.TRIANGLES, mesh.triangles.length, gl.UNSIGNED_INT, 0);
  }

  drawBalls(positions, radii, values, look) {
    const { gl, ball: { made, places: at } } = this;
    gl.useProgram(made);
    this.place(at);
    this.paint(at, look);
    gl.uniform1f(at.pixels, this.canvas.height / 2);
    [["position", positions, 3], ["radius", radii, 1], ["value", values, 1]].forEach(([name, data, size], i) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[i]);
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
      attribute(gl, at[name], this.buffers[i], size);
    });
    gl.drawArrays(gl.POINTS, 0, radii.length);
  }

  // Without WebGL: points and arrows, from back to front.
  drawFlat() {
    const [width, height] = fit(this.canvas);
    const ratio = window.devicePixelRatio || 1;
    const c = this.canvas.getContext("2d");
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, width, height);
    const { rest, moved, sizes, n } = this.parts;
    const scale = (0.65 * this.zoom * Math.min(width, height)) / this.radius;
    const onto = (points, i) => {
      const p = [0, 1, 2].map((a) => points[3 * i + a] - this.middle[a]);
      const [x, y, z] = [0, 3, 6].map((r) => this.turn[r] * p[0] + this.turn[r + 1] * p[1] + this.turn[r + 2] * p[2]);
      return [width / 2 + scale * x, height / 2 - scale * y, z];
    };
    const all = Array.from({ length: n }, (_, i) => [...onto(moved, i), i]).sort((a, b) => a[2] - b[2]);
    for (const [x, y, , i] of all) {
      c.fillStyle = `rgb(${blend(MOTION, sizes[i] / this.top).map(Math.round)})`;
      c.fillRect(x - 2, y - 2, 4, 4);
    }
    c.strokeStyle = themeColour("--ink");
    if (this.show.arrows) for (const i of this.chosen) line(c, [onto(rest, i).slice(0, 2), onto(moved, i).slice(0, 2)]);
  }

  // ------------------------------------------------------------ the mouse

  listen() {
    let last = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      last = [event.clientX, event.clientY];
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]].map((v) => v * 0.008);
      last = [event.clientX, event.clientY];
      this.turn = product(product(about(0, dy), about(1, dx)), this.turn);
      this.redraw();
    });
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => { last = null; });
    this.canvas.addEventListener("dblclick", () => { this.turn = [...this.home]; this.zoom = 1; this.redraw(); });
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom *= Math.exp(-0.0012 * event.deltaY);
      this.redraw();
    }, { passive: false });
  }
}

// ---------------------------------------------------------------- geometry

function product(a, b) {
  const out = new Array(9).fill(0);
  for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++) for (let k = 0; k < 3; k++) out[3 * i + j] += a[3 * i + k] * b[3 * k + j];
  return out;
}

// Return the rotation about the screen's x (0) or y (1) axis.
function about(axis, angle) {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return axis ? [c, 0, s, 0, 1, 0, -s, 0, c] : [1, 0, 0, 0, c, -s, 0, s, c];
}

// moved = rest + sum over k of at[k] * motions[k]
function move(part, at) {
  const { rest, motions, moved } = part;
  moved.set(rest);
  at.forEach((c, k) => {
    if (c) for (let i = 0, m = k * rest.length; i < rest.length; i++, m++) moved[i] += c * motions[m];
  });
}

// Return indices of n points, each the one farthest from those before it.
function spreadOut(points, n) {
  const count = points.length / 3;
  const chosen = [0];
  const distance = new Float32Array(count).fill(Infinity);
  while (chosen.length < Math.min(n, count)) {
    const last = 3 * chosen[chosen.length - 1];
    let best = 0;
    for (let i = 0; i < count; i++) {
      const d = (points[3 * i] - points[last]) ** 2 + (points[3 * i + 1] - points[last + 1]) ** 2
        + (points[3 * i + 2] - points[last + 2]) ** 2;
      if (d < distance[i]) distance[i] = d;
      if (distance[i] > distance[best]) best = i;
    }
    chosen.push(best);
  }
  return chosen;
}

// A mesh of n rods with `sides` sides between two rings: ends are [x, y, z, radius] of either end, values of each rod.
function rodMesh(rods, sides = 6) {
  const ring = sides * 2;
  const mesh = { positions: new Float32Array(rods.length * ring * 3), normals: new Float32Array(rods.length * ring * 3),
    values: new Float32Array(rods.length * ring), triangles: new Uint32Array(rods.length * sides * 6) };
  rods.forEach(({ from, to, r0, r1, value }, rod) => {
    const d = [0, 1, 2].map((a) => to[a] - from[a]);
    const length = Math.hypot(...d) || 1;
    const w = d.map((v) => v / length);
    const aside = Math.abs(w[0]) < 0.8 ? [1, 0, 0] : [0, 1, 0];
    let u = cross(w, aside);
    const size = Math.hypot(...u);
    u = u.map((v) => v / size);
    const v = cross(w, u);
    for (let s = 0; s < sides; s++) {
      const angle = (2 * Math.PI * s) / sides;
      const n = [0, 1, 2].map((a) => Math.cos(angle) * u[a] + Math.sin(angle) * v[a]);
      for (const end of [0, 1]) {
        const at = rod * ring + 2 * s + end;
        for (let a = 0; a < 3; a++) {
          mesh.positions[3 * at + a] = (end ? to : from)[a] + (end ? r1 : r0) * n[a];
          mesh.normals[3 * at + a] = n[a];
        }
        mesh.values[at] = value;
      }
      const [a, b] = [rod * ring + 2 * s, rod * ring + 2 * ((s + 1) % sides)];
      mesh.triangles.set([a, b, a + 1, b, b + 1, a + 1], (rod * sides + s) * 6);
    }
  });
  return mesh;
}
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

// Arrows as shafts with cones.
function needles(chosen, rest, moved, sizes, top, radius) {
  const parts = [];
  for (const i of chosen) {
    // Shorter ones would be heads without shafts.
    if (sizes[i] < Math.max(0.06 * top, 0.5)) continue;
    const [from, to] = [rest.subarray(3 * i, 3 * i + 3), moved.subarray(3 * i, 3 * i + 3)];
    const head = Math.min(0.5, (3.2 * radius) / sizes[i]);
    const neck = [0, 1, 2].map((a) => to[a] - head * (to[a] - from[a]));
    const value = sizes[i] / top;
    parts.push({ from, to: neck, r0: 0.4 * radius, r1: 0.4 * radius, value });
    parts.push({ from: neck, to, r0: 1.15 * radius, r1: 0, value });
  }
  return rodMesh(parts);
}

function rods(places, starts, radius) {
  const parts = [];
  for (let i = 1; i < starts.length; i++)
    if (!starts[i]) parts.push({ from: places.subarray(3 * i - 3, 3 * i), to: places.subarray(3 * i, 3 * i + 3), r0: radius, r1: radius, value: 0 });
  return rodMesh(parts);
}

// The surface of a [z, y, x] volume of bytes at a level (0 to 255), by naive surface nets.
function makeSurface(source) {
  const { volume, level, spacing, first, values: colours, coloursShape } = source;
  const [nz, ny, nx] = volume.shape;
  const cell = new Int32Array(volume.length).fill(-1);
  const positions = [], normals = [], values = [], triangles = [];
  const steps = [1, nx, nx * ny];
  const corners = [0, 1, nx, nx + 1, nx * ny, nx * ny + 1, nx * ny + nx, nx * ny + nx + 1];
  const edges = [];
  for (let c = 0; c < 8; c++) for (let a = 0; a < 3; a++) if (!(c & (1 << a))) edges.push([c, c | (1 << a), a]);
  for (let z = 0; z < nz - 1; z++) for (let y = 0; y < ny - 1; y++) for (let x = 0; x < nx - 1; x++) {
    const at = x + nx * (y + ny * z);
    let inside = 0;
    for (let c = 0; c < 8; c++) if (volume[at + corners[c]] > level) inside |= 1 << c;
    if (inside === 0 || inside === 255) continue;
    let n = 0;
    const p = [0, 0, 0];
    for (const [a, b, axis] of edges) {
      if (!(inside & (1 << a)) === !(inside & (1 << b))) continue;
      const [va, vb] = [volume[at + corners[a]], volume[at + corners[b]]];
      const t = (level - va) / (vb - va);
      for (let k = 0; k < 3; k++) p[k] += (a >> k) & 1;
      p[axis] += t;
      n++;
    }
    cell[at] = positions.length / 3;
    const place = [x + p[0] / n, y + p[1] / n, z + p[2] / n];
    positions.push(...place.map((v, k) => first[k] + v * spacing));
    // The gradient over the cell and its neighbours.
    const g = [0, 0, 0];
    for (let c = 0; c < 8; c++) for (let k = 0; k < 3; k++) {
      const i = at + corners[c];
      g[k] += (volume[i - steps[k]] || 0) - (volume[i + steps[k]] || 0);
    }
    const size = Math.hypot(...g) || 1;
    normals.push(...g.map((v) => v / size));
    if (colours) {
      const [, h, w] = coloursShape;
      const [i, j, k] = place.map((v) => Math.round(v / 2));
      values.push((colours[Math.min(i, w - 1) + w * (Math.min(j, h - 1) + h * Math.min(k, coloursShape[0] - 1))] || 0) / 255);
    } else values.push(0);
    // Faces of the edges from this cell's first corner, whose four cells have all been met.
    const low = inside & 1;
    for (let a = 0; a < 3; a++) {
      if (!low === !(inside & (1 << (1 << a)))) continue;
      const [u, v] = [(a + 1) % 3, (a + 2) % 3].map((k) => steps[k]);
      const four = [cell[at], cell[at - u], cell[at - u - v], cell[at - v]];
      if (four.some((i) => i === undefined || i < 0)) continue;
      if (low) four.reverse();
      triangles.push(four[0], four[1], four[2], four[0], four[2], four[3]);
    }
  }
  return { ...source, positions: Float32Array.from(positions), normals: Float32Array.from(normals),
    values: Float32Array.from(values), triangles: Uint32Array.from(triangles) };
}
