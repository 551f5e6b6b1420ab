// The molecule as one surface that plays along a motion, coloured by motion beyond its uncertainty.

import { MOTION, rgb } from "./colours.js";
import { colourBar, element } from "./dom.js";
import { explains, signed } from "./format.js";
import { makeSurface } from "./meshes.js";
import { Molecule } from "./molecule.js";

// Time there and back, ms.
const PERIOD = 4000;

// Return a function of a vertex's place (Å) that gives the voxels [index, weight] of a grid on every second voxel.
function neighbours([d, h, w], { first, spacing }) {
  const limits = [w, h, d];
  return (position) => {
    const place = position.map((v, a) => Math.min(Math.max((v - first[a]) / spacing / 2, 0), limits[a] - 1.001));
    const low = place.map((v) => Math.max(0, Math.floor(v)));
    return [0, 1, 2, 3, 4, 5, 6, 7].map((corner) => {
      let weight = 1;
      const at = low.map((v, a) => {
        const up = (corner >> a) & 1;
        weight *= up ? place[a] - v : 1 - place[a] + v;
        return Math.min(v + up, limits[a] - 1);
      });
      return [at[0] + w * (at[1] + h * at[2]), weight];
    });
  };
}

// Return the displacement of each vertex along motion k, and its colour, from the grids on every second voxel.
export function shiftsAt(mesh, { shifts, surface }, k) {
  const [, d, h, w] = shifts.shape;
  const near = neighbours([d, h, w], surface);
  const out = new Float32Array(mesh.positions.length);
  for (let i = 0; i < out.length; i += 3)
    for (const [voxel, weight] of near(Array.from(mesh.positions.subarray(i, i + 3)))) {
      const at = 3 * (voxel + d * h * w * k);
      for (let a = 0; a < 3; a++) out[i + a] += weight * ((2 * shifts[at + a]) / 65535 - 1) * surface.reach;
    }
  return out;
}

function coloursAt(mesh, { beyond, surface }) {
  const near = neighbours(beyond.shape, surface);
  return Float32Array.from({ length: mesh.positions.length / 3 }, (_, i) =>
    near(Array.from(mesh.positions.subarray(3 * i, 3 * i + 3))).reduce((sum, [v, w]) => sum + (w * beyond[v]) / 255, 0),
  );
}

// Return the normals of a mesh from its triangles, pointing as those given.
export function meshNormals({ positions, triangles, normals: given }) {
  const out = new Float32Array(positions.length);
  for (let t = 0; t < triangles.length; t += 3) {
    const [a, b, c] = [3 * triangles[t], 3 * triangles[t + 1], 3 * triangles[t + 2]];
    const [ux, uy, uz] = [0, 1, 2].map((k) => positions[b + k] - positions[a + k]);
    const [vx, vy, vz] = [0, 1, 2].map((k) => positions[c + k] - positions[a + k]);
    const n = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
    for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) out[corner + k] += n[k];
  }
  let agreement = 0;
  for (let i = 0; i < out.length; i++) agreement += out[i] * given[i];
  for (let i = 0; i < out.length; i += 3) {
    const size = (Math.hypot(out[i], out[i + 1], out[i + 2]) || 1) * (agreement < 0 ? -1 : 1);
    for (let k = 0; k < 3; k++) out[i + k] /= size;
  }
  return out;
}

// A volume of the overview as `makeSurface` takes it.
export const volumeOf = (volume, { first, spacing, level }, more = {}) => ({
  volume,
  level: 255 * level,
  first,
  spacing,
  plainWeight: 1,
  plain: [0.6, 0.66, 0.7],
  opacity: 1,
  ...more,
});

// Return a view of surfaces alone, about points; the page scrolls under the mouse wheel.
export function surfaceView(box, { points, view }, label) {
  box.replaceChildren(element("canvas", { tabIndex: 0, ariaLabel: label, role: "application" }));
  const molecule = new Molecule(box, { wheel: false });
  molecule.setParts({ rest: points, motions: new Float32Array(0), error: new Float32Array(points.length / 3), view });
  molecule.show = { surface: true, arrows: false, errors: false, points: false, trace: false };
  return molecule;
}

export class Film {
  // `parts` are the elements: view, legend, controls.
  constructor({ view, legend, controls }, data) {
    this.data = data;
    this.molecule = surfaceView(view, data, "The molecule in three dimensions. Arrow keys rotate it.");
    const { surface, density, motions } = data;
    this.rest = makeSurface(volumeOf(density, surface, { plainWeight: motions.length ? 0 : 1 }));
    this.rest.values = coloursAt(this.rest, data);
    if (motions.length)
      legend.replaceChildren(colourBar("motion beyond its uncertainty", MOTION, 0, surface.top, " Å"));
    this.playing = false;
    this.phase = 0;
    if (motions.length) this.makeControls(controls, motions);
    else this.molecule.showMeshes([this.rest]);
  }

  makeControls(controls, motions) {
    const names = motions.map(({ number, explained }, i) =>
      element("option", { value: i, textContent: `motion ${number}, ${explains(explained)}` }),
    );
    this.button = element("button", { type: "button", textContent: "Play" });
    this.menu = element("select", { ariaLabel: "motion that plays" }, ...names);
    this.slider = element("input", { type: "range", min: 0, max: 1000, value: 500, ariaLabel: "coordinate" });
    this.output = element("output");
    const title = motions.length > 1 ? this.menu : element("span", { textContent: names[0].textContent });
    controls.className = "film-controls";
    controls.replaceChildren(this.button, title, this.slider, this.output);
    this.button.addEventListener("click", () => this.play(!this.playing));
    this.slider.addEventListener("input", () => {
      this.play(false);
      this.phase = Math.asin(this.slider.value / 500 - 1) / (2 * Math.PI);
      this.draw();
    });
    this.menu.addEventListener("change", () => this.choose(Number(this.menu.value)));
    this.choose(0);
    // Without WebGL each picture takes long; whoever wants no motion starts it.
    this.play(Boolean(this.molecule.gl) && !matchMedia("(prefers-reduced-motion: reduce)").matches);
  }

  choose(k) {
    this.motion = this.data.motions[k];
    this.shifts = shiftsAt(this.rest, this.data, k);
    this.draw();
  }

  play(on) {
    this.button.textContent = on ? "Pause" : "Play";
    if (on && !this.playing) {
      const started = performance.now() - PERIOD * this.phase;
      const frame = (now) => {
        if (!this.playing) return;
        this.phase = (now - started) / PERIOD;
        if (!this.molecule.canvas.closest("[hidden]")) this.draw();
        setTimeout(() => requestAnimationFrame(frame), 25);
      };
      requestAnimationFrame(frame);
    }
    this.playing = on;
  }

  // Draw the surface where the motion is now: the map is at one coordinate, the film goes from the lowest to the highest.
  draw() {
    const { low, high, map } = this.motion;
    const place = 0.5 + 0.5 * Math.sin(2 * Math.PI * this.phase);
    this.slider.value = 1000 * place;
    const at = low + (high - low) * place;
    this.output.textContent = `${signed(at)} Å`;
    this.molecule.showMeshes([this.moved([[at - map, this.shifts]])]);
  }

  // Return the surface displaced by factors times shifts.
  moved(parts) {
    const positions = this.rest.positions.map((v, i) => parts.reduce((sum, [c, shifts]) => sum + c * shifts[i], v));
    const mesh = { ...this.rest, positions };
    mesh.normals = meshNormals(mesh);
    return mesh;
  }

  // Return the surfaces of the states, in their colours.
  stateSurfaces() {
    const { motions, states } = this.data;
    const shifts = motions.map((_, k) => shiftsAt(this.rest, this.data, k));
    return states.map(({ at, colour }) => {
      const parts = motions.map(({ number, map }, k) => [at[number - 1] - map, shifts[k]]);
      return { ...this.moved(parts), plain: rgb(colour).map((v) => v / 255), plainWeight: 1 };
    });
  }
}
