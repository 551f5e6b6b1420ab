// The molecule in three dimensions: density surfaces, arrows, points, uncertainties and the atomic model's trace.

import { clearedContext, fitCanvas, oncePerFrame, strokeLine } from "./canvas.js";
import { blend, MOTION, palette, rgb } from "./colours.js";
import { isDark, themeColour } from "./dom.js";
import { boundingSphere, displace, displacementSizes, rotated, spreadOut } from "./geometry.js";
import { arrowMesh, makeSurface, traceMesh } from "./meshes.js";
import { listenToTurns } from "./orbit.js";
import { BALL_FRAGMENT, BALL_VERTEX, MESH_FRAGMENT, MESH_VERTEX } from "./shaders.js";
import { bindAttribute, compileProgram, openGl, setPalette } from "./webgl.js";

const N_ARROWS = 170;
// Radius of the rods of the atomic model's trace, Å.
const TRACE_RADIUS = 1.1;
// Largest displacement below which arrows are too short to be seen through the density, Å.
const MIN_ARROWS = 0.3;
const ARROW_COLOURS = { dark: [0.93, 0.95, 0.96], light: [0.13, 0.16, 0.18] };
const TRACE_COLOUR = [0.85, 0.45, 0.2];
const ERROR_COLOUR = [0.78, 0.36, 0.2];

// Return how long the molecule's radius is in a canvas: longer than half its height, as molecules lie lengthwise.
const halfSize = (width, height) => Math.min(0.65 * Math.min(width, height), 0.49 * width);

export class Molecule {
  // Without `wheel`, the mouse wheel scrolls the page and Ctrl with it zooms.
  constructor(container, { wheel = true } = {}) {
    this.onTurn = () => {};
    this.canvas = container.querySelector("canvas");
    this.show = { surface: true, arrows: true, errors: false, points: false, trace: true };
    this.rotation = [1, 0, 0, 0, 1, 0, 0, 0, 1];
    this.zoom = 1;
    this.surfaces = [];
    this.redraw = oncePerFrame(() => this.draw());
    this.gl = openGl(this.canvas);
    if (this.gl) this.prepare();
    listenToTurns(this.canvas, this, { wheel });
    new ResizeObserver(this.redraw).observe(container);
  }

  prepare() {
    const gl = this.gl;
    this.mesh = compileProgram(gl, MESH_VERTEX, MESH_FRAGMENT);
    this.ball = compileProgram(gl, BALL_VERTEX, BALL_FRAGMENT);
    this.buffers = Array.from({ length: 4 }, () => gl.createBuffer());
    this.texture = gl.createTexture();
    setPalette(gl, this.texture, palette(MOTION, null, "#888888"));
  }

  // Set the points of the run and how they move, as the action `molecule` returns them.
  setParts({ rest, motions, error, view, trace, trace_motions: traceMotions, trace_starts: starts }) {
    const n = rest.length / 3;
    this.meanError = error;
    this.parts = { rest, motions, error, n, moved: new Float32Array(3 * n), sizes: new Float32Array(n) };
    this.chosen = spreadOut(rest, N_ARROWS);
    if (trace) this.trace = { rest: trace, motions: traceMotions, starts, moved: new Float32Array(trace.length) };
    this.firstRotation = Array.from(view);
    this.rotation = this.firstRotation;
    this.sphere = boundingSphere(rest);
  }

  // Set the uncertainty at each point: of one particle, or without an array the mean of all.
  setErrors(error = this.meanError) {
    this.parts.error = error;
    this.redraw();
  }

  // Move points, arrows and atomic model to coordinates, Å rms.
  setCoordinates(at) {
    displace(this.parts, at);
    const { rest, moved, sizes } = this.parts;
    this.top = Math.max(displacementSizes(rest, moved, sizes), 1e-3);
    if (this.trace) displace(this.trace, at);
    this.redraw();
  }

  // Show surfaces of volumes, as `makeSurface` takes them, with { plain, plainWeight, opacity, pair }.
  setSurfaces(volumes) {
    this.showMeshes(this.gl ? volumes.map(makeSurface) : []);
  }

  // Show surfaces that have been computed.
  showMeshes(surfaces) {
    this.surfaces = surfaces;
    this.redraw();
  }

  // ------------------------------------------------------------ drawing

  draw() {
    if (!this.parts) return;
    if (!this.gl) {
      this.drawFlat();
      return;
    }
    this.startFrame();
    const pair = this.surfaces.some((s) => s.pair);
    const { surface, arrows, points, errors } = this.show;
    const trace = this.show.trace && this.trace;
    if (arrows && !pair) this.drawArrows();
    if (trace) {
      const look = { plain: TRACE_COLOUR, plainWeight: 1, opacity: 1 };
      this.drawMesh(traceMesh(this.trace.moved, this.trace.starts, TRACE_RADIUS), look);
    }
    if (points) this.drawPoints();
    // Arrows, points and models lie inside the density, which becomes glass around them.
    const glass = !pair && ((arrows && this.top > MIN_ARROWS) || points || errors || trace);
    const isSolid = (mesh) => mesh.opacity >= 1 && !glass;
    const surfaces = surface ? this.surfaces : [];
    for (const mesh of surfaces.filter(isSolid)) this.drawMesh(mesh, mesh);
    if (errors) this.drawErrors();
    for (const mesh of surfaces.filter((m) => !isSolid(m))) this.drawGlass(mesh);
  }

  startFrame() {
    const gl = this.gl;
    fitCanvas(this.canvas);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  drawArrows() {
    const { rest, moved, sizes } = this.parts;
    const mesh = arrowMesh(this.chosen, rest, moved, sizes, this.top, Math.max(0.9, this.sphere.radius / 70));
    this.drawMesh(mesh, { plain: ARROW_COLOURS[isDark() ? "dark" : "light"], plainWeight: 0.82, opacity: 1 });
  }

  drawPoints() {
    const { moved, sizes, n } = this.parts;
    const values = Float32Array.from(sizes, (s) => s / this.top);
    const radii = new Float32Array(n).fill(this.sphere.radius / 45);
    this.drawBalls(moved, radii, values, { opacity: 1, plainWeight: 0 });
  }

  // Draw the uncertainty of the displacement as a ball at each arrow's tip.
  drawErrors() {
    const { moved, error } = this.parts;
    const places = new Float32Array(3 * this.chosen.length);
    const radii = Float32Array.from(this.chosen, (i) => error[i]);
    this.chosen.forEach((i, k) => {
      places.set(moved.subarray(3 * i, 3 * i + 3), 3 * k);
    });
    this.gl.depthMask(false);
    this.drawBalls(places, radii, new Float32Array(radii.length), {
      opacity: 0.5,
      plain: ERROR_COLOUR,
      plainWeight: 1,
    });
    this.gl.depthMask(true);
  }

  // Draw a surface into the depth alone first, so that only its foremost layer is seen.
  drawGlass(surface) {
    const gl = this.gl;
    gl.colorMask(false, false, false, false);
    this.drawMesh(surface, { ...surface, opacity: 1 });
    gl.colorMask(true, true, true, true);
    gl.depthFunc(gl.LEQUAL);
    this.drawMesh(surface, { ...surface, opacity: Math.min(surface.opacity, isDark() ? 0.62 : 0.5) });
    gl.depthFunc(gl.LESS);
  }

  drawMesh(mesh, look) {
    const gl = this.gl;
    this.useProgram(this.mesh, look);
    this.setAttribute(this.mesh, 0, "position", mesh.positions, 3);
    this.setAttribute(this.mesh, 1, "normal", mesh.normals, 3);
    this.setAttribute(this.mesh, 2, "value", mesh.values, 1);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers[3]);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, mesh.triangles, gl.DYNAMIC_DRAW);
    gl.drawElements(gl.TRIANGLES, mesh.triangles.length, gl.UNSIGNED_INT, 0);
  }

  drawBalls(positions, radii, values, look) {
    this.useProgram(this.ball, look);
    this.gl.uniform1f(this.ball.places.pixels, this.canvas.height / 2);
    this.setAttribute(this.ball, 0, "position", positions, 3);
    this.setAttribute(this.ball, 1, "radius", radii, 1);
    this.setAttribute(this.ball, 2, "value", values, 1);
    this.gl.drawArrays(this.gl.POINTS, 0, radii.length);
  }

  useProgram({ made, places: at }, { plain = [0, 0, 0], plainWeight = 0, opacity = 1 }) {
    const gl = this.gl;
    const { width, height } = this.canvas;
    const scale = (2 * this.zoom * halfSize(width, height)) / this.sphere.radius;
    gl.useProgram(made);
    gl.uniformMatrix3fv(at.rotation, true, this.rotation);
    gl.uniform3fv(at.centre, this.sphere.centre);
    gl.uniform2f(at.scale, scale / width, scale / height);
    gl.uniform1f(at.depth, 0.4 / this.sphere.radius);
    gl.uniform3fv(at.plain, plain);
    gl.uniform1f(at.plainWeight, plainWeight);
    gl.uniform1f(at.opacity, opacity);
    const ground = rgb(themeColour("--card")).map((v) => v / 255);
    gl.uniform3fv(at.ground, ground);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
  }

  setAttribute({ places }, index, name, data, size) {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[index]);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
    bindAttribute(gl, places[name], this.buffers[index], size);
  }

  // Without WebGL: surfaces that have been computed, else points and arrows, from back to front.
  drawFlat() {
    const context = clearedContext(this.canvas);
    for (const mesh of this.surfaces) this.drawFlatMesh(context, mesh);
    if (this.surfaces.length || !this.top) return;
    const { width, height } = this.canvas.getBoundingClientRect();
    const { rest, moved, sizes, n } = this.parts;
    const { centre, radius } = this.sphere;
    const scale = (this.zoom * halfSize(width, height)) / radius;
    const project = (points, i) => {
      const [x, y, z] = rotated(this.rotation, centre, points, i);
      return [width / 2 + scale * x, height / 2 - scale * y, z];
    };
    const all = Array.from({ length: n }, (_, i) => [...project(moved, i), i]).sort((a, b) => a[2] - b[2]);
    for (const [x, y, , i] of all) {
      context.fillStyle = `rgb(${blend(MOTION, sizes[i] / this.top).map(Math.round)})`;
      context.fillRect(x - 2, y - 2, 4, 4);
    }
    context.strokeStyle = themeColour("--ink");
    if (this.show.arrows) for (const i of this.chosen) strokeLine(context, [project(rest, i), project(moved, i)]);
  }

  drawFlatMesh(context, { positions, normals, values, triangles, plain, plainWeight }) {
    const { width, height } = this.canvas.getBoundingClientRect();
    const { centre, radius } = this.sphere;
    const scale = (this.zoom * halfSize(width, height)) / radius;
    const n = positions.length / 3;
    const places = Array.from({ length: n }, (_, i) => rotated(this.rotation, centre, positions, i));
    const light = Array.from({ length: n }, (_, i) => {
      const [x, y, z] = rotated(this.rotation, [0, 0, 0], normals, i);
      return 0.45 + 0.55 * Math.max(0, 0.35 * x + 0.55 * y + 0.75 * z);
    });
    const faces = [];
    for (let t = 0; t < triangles.length; t += 3) {
      const face = [triangles[t], triangles[t + 1], triangles[t + 2]];
      faces.push([face.reduce((sum, i) => sum + places[i][2], 0), face]);
    }
    faces.sort((a, b) => a[0] - b[0]);
    for (const [, face] of faces) {
      const base = plainWeight === 1 ? plain.map((v) => 255 * v) : blend(MOTION, values[face[0]]);
      context.fillStyle = context.strokeStyle = `rgb(${base.map((v) => Math.round(v * light[face[0]]))})`;
      strokeLine(
        context,
        face.map((i) => [width / 2 + scale * places[i][0], height / 2 - scale * places[i][1]]),
        true,
      );
      context.fill();
    }
  }

  turned() {
    this.redraw();
    this.onTurn();
  }

  reset() {
    this.rotation = this.firstRotation;
    this.zoom = 1;
    this.turned();
  }
}
