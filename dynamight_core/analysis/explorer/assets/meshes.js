// Meshes to draw: { positions, normals, values, triangles }, values from 0 to 1 choose colours.

import { cross } from "./geometry.js";

// Corners of a cell are numbered by bits: x 1, y 2, z 4. Edges are [corner, corner, axis].
const EDGES = [0, 1, 2, 3, 4, 5, 6, 7].flatMap((c) =>
  [0, 1, 2].filter((axis) => !(c & (1 << axis))).map((axis) => [c, c | (1 << axis), axis]),
);
// Sides of a rod.
const SIDES = 6;

// Return the mesh of rods { from, to, r0, r1, value }: rings of radius r0 and r1 around both ends.
export function rodMesh(rods) {
  const ring = SIDES * 2;
  const mesh = {
    positions: new Float32Array(rods.length * ring * 3),
    normals: new Float32Array(rods.length * ring * 3),
    values: new Float32Array(rods.length * ring),
    triangles: new Uint32Array(rods.length * SIDES * 6),
  };
  rods.forEach((rod, index) => {
    addRod(mesh, rod, index * ring, index * SIDES * 6);
  });
  return mesh;
}

function addRod(mesh, { from, to, r0, r1, value }, first, firstTriangle) {
  const d = [0, 1, 2].map((a) => to[a] - from[a]);
  const length = Math.hypot(...d) || 1;
  const w = d.map((v) => v / length);
  const aside = cross(w, Math.abs(w[0]) < 0.8 ? [1, 0, 0] : [0, 1, 0]);
  const u = aside.map((v) => v / Math.hypot(...aside));
  const v = cross(w, u);
  for (let s = 0; s < SIDES; s++) {
    const angle = (2 * Math.PI * s) / SIDES;
    const n = [0, 1, 2].map((a) => Math.cos(angle) * u[a] + Math.sin(angle) * v[a]);
    for (const end of [0, 1]) {
      const at = first + 2 * s + end;
      mesh.positions.set(
        n.map((x, a) => (end ? to : from)[a] + (end ? r1 : r0) * x),
        3 * at,
      );
      mesh.normals.set(n, 3 * at);
      mesh.values[at] = value;
    }
    const [a, b] = [first + 2 * s, first + 2 * ((s + 1) % SIDES)];
    mesh.triangles.set([a, b, a + 1, b, b + 1, a + 1], firstTriangle + 6 * s);
  }
}

// Return arrows, shafts with cones, from `rest` to `moved` for the chosen points; values are sizes over `top`.
export function arrowMesh(chosen, rest, moved, sizes, top, radius) {
  const parts = [];
  for (const i of chosen) {
    // Shorter arrows would be heads without shafts.
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

// Return rods between consecutive points of a trace; starts[i] is 1 where a chain begins.
export function traceMesh(places, starts, radius) {
  const parts = [];
  for (let i = 1; i < starts.length; i++) {
    if (starts[i]) continue;
    const [from, to] = [places.subarray(3 * i - 3, 3 * i), places.subarray(3 * i, 3 * i + 3)];
    parts.push({ from, to, r0: radius, r1: radius, value: 0 });
  }
  return rodMesh(parts);
}

// Return the surface of a [z, y, x] volume of bytes at a level (0 to 255), by naive surface nets, beside `source`.
// `first` is the position of the first voxel and `spacing` the distance of voxels (Å). `values` are bytes on every
// second voxel, of shape `coloursShape`.
export function makeSurface(source) {
  const { volume, level, spacing, first } = source;
  const [nz, ny, nx] = volume.shape;
  const steps = [1, nx, nx * ny];
  const corners = [0, 1, 2, 3, 4, 5, 6, 7].map((c) => (c & 1) + nx * ((c >> 1) & 1) + nx * ny * (c >> 2));
  const cell = new Int32Array(volume.length).fill(-1);
  const [positions, normals, values, triangles] = [[], [], [], []];
  for (let z = 0; z < nz - 1; z++) {
    for (let y = 0; y < ny - 1; y++) {
      for (let x = 0; x < nx - 1; x++) {
        const at = x + nx * (y + ny * z);
        let inside = 0;
        for (let c = 0; c < 8; c++) if (volume[at + corners[c]] > level) inside |= 1 << c;
        if (inside === 0 || inside === 255) continue;
        cell[at] = positions.length / 3;
        const offset = crossing(volume, at, corners, inside, level);
        const place = [x + offset[0], y + offset[1], z + offset[2]];
        positions.push(...place.map((v, k) => first[k] + v * spacing));
        normals.push(...outwards(volume, at, corners, steps));
        values.push(valueAt(source, place));
        addFaces(triangles, cell, at, steps, inside);
      }
    }
  }
  return {
    ...source,
    positions: Float32Array.from(positions),
    normals: Float32Array.from(normals),
    values: Float32Array.from(values),
    triangles: Uint32Array.from(triangles),
  };
}

// Return the mean place, 0 to 1 inside a cell, where its edges cross the level.
function crossing(volume, at, corners, inside, level) {
  const p = [0, 0, 0];
  let n = 0;
  for (const [a, b, axis] of EDGES) {
    if (!(inside & (1 << a)) === !(inside & (1 << b))) continue;
    const [va, vb] = [volume[at + corners[a]], volume[at + corners[b]]];
    for (let k = 0; k < 3; k++) p[k] += (a >> k) & 1;
    p[axis] += (level - va) / (vb - va);
    n++;
  }
  return p.map((v) => v / n);
}

// Return the direction in which the density falls, over a cell and its neighbours.
function outwards(volume, at, corners, steps) {
  const g = [0, 0, 0];
  for (const corner of corners)
    for (let k = 0; k < 3; k++) g[k] += (volume[at + corner - steps[k]] || 0) - (volume[at + corner + steps[k]] || 0);
  const size = Math.hypot(...g) || 1;
  return g.map((v) => v / size);
}

function valueAt({ values, coloursShape }, place) {
  if (!values) return 0;
  const [d, h, w] = coloursShape;
  const [i, j, k] = place.map((v) => Math.round(v / 2));
  return (values[Math.min(i, w - 1) + w * (Math.min(j, h - 1) + h * Math.min(k, d - 1))] || 0) / 255;
}

// Add the faces that cross the three edges from a cell's first corner; the four cells around each have been visited.
function addFaces(triangles, cell, at, steps, inside) {
  const low = inside & 1;
  for (let a = 0; a < 3; a++) {
    if (!low === !(inside & (1 << (1 << a)))) continue;
    const [u, v] = [steps[(a + 1) % 3], steps[(a + 2) % 3]];
    const four = [cell[at], cell[at - u], cell[at - u - v], cell[at - v]];
    if (four.some((i) => i === undefined || i < 0)) continue;
    if (!low) four.reverse();
    triangles.push(four[0], four[1], four[2], four[0], four[2], four[3]);
  }
}
