// Meshes of surfaces, arrows and traces.

import assert from "node:assert/strict";
import { test } from "node:test";
import { arrowMesh, makeSurface, rodMesh, traceMesh } from "../../dynamight_core/analysis/explorer/assets/meshes.js";

const vertex = (mesh, i) => [...mesh.positions.subarray(3 * i, 3 * i + 3)];
const normal = (mesh, i) => [...mesh.normals.subarray(3 * i, 3 * i + 3)];
const dot = (a, b) => a.reduce((sum, v, k) => sum + v * b[k], 0);
const minus = (a, b) => a.map((v, k) => v - b[k]);
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

// A ball of radius 6 voxels around voxel (8, 9, 10) of an [z, y, x] volume, 100 at its surface.
function ball() {
  const shape = [21, 20, 18];
  const volume = new Uint8Array(21 * 20 * 18);
  for (let z = 0; z < 21; z++)
    for (let y = 0; y < 20; y++)
      for (let x = 0; x < 18; x++) {
        const r = Math.hypot(x - 8, y - 9, z - 10);
        volume[x + 18 * (y + 20 * z)] = Math.min(255, Math.max(0, 100 + 20 * (6 - r)));
      }
  return Object.assign(volume, { shape });
}

test("the surface of a ball lies at its radius, closed, with normals and triangles facing outwards", () => {
  const mesh = makeSurface({ volume: ball(), level: 100, spacing: 2, first: [-16, -18, -20] });
  const n = mesh.positions.length / 3;
  assert.ok(n > 300);
  for (let i = 0; i < n; i++) {
    const p = vertex(mesh, i);
    assert.ok(Math.abs(Math.hypot(...p) - 12) < 0.5, `a vertex at ${Math.hypot(...p)}`);
    assert.ok(dot(normal(mesh, i), p) > 0.95 * Math.hypot(...p));
  }
  const edges = new Map();
  for (let t = 0; t < mesh.triangles.length; t += 3) {
    const corners = [...mesh.triangles.subarray(t, t + 3)];
    const [a, b, c] = corners.map((i) => vertex(mesh, i));
    assert.ok(dot(cross(minus(b, a), minus(c, a)), a) > 0);
    corners.forEach((i, k) => {
      const j = corners[(k + 1) % 3];
      edges.set(`${i} ${j}`, (edges.get(`${i} ${j}`) ?? 0) + 1);
    });
  }
  // Every edge has one triangle on either side, in opposite directions.
  for (const [edge, times] of edges) {
    assert.equal(times, 1);
    assert.ok(edges.has(edge.split(" ").reverse().join(" ")));
  }
  // Euler's characteristic of a sphere.
  assert.equal(n - edges.size / 2 + mesh.triangles.length / 3, 2);
});

test("a surface is coloured by the values at its place", () => {
  // Values on every second voxel: 255 in the upper half of x.
  const coloursShape = [11, 10, 9];
  const values = Uint8Array.from({ length: 11 * 10 * 9 }, (_, i) => (i % 9 >= 5 ? 255 : 0));
  const mesh = makeSurface({ volume: ball(), level: 100, spacing: 1, first: [0, 0, 0], values, coloursShape });
  mesh.values.forEach((value, i) => {
    const x = vertex(mesh, i)[0];
    if (Math.abs(x - 9) > 0.01) assert.equal(value, x > 9 ? 1 : 0);
  });
});

test("a volume below the level has no surface", () => {
  const mesh = makeSurface({ volume: ball(), level: 254, spacing: 1, first: [0, 0, 0] });
  assert.equal(mesh.triangles.length, 0);
});

test("a rod is a ring of its radius around either end", () => {
  for (const to of [
    [0, 0, 5],
    [5, 0, 0],
    [1, 2, 3],
  ]) {
    const from = [0, 0, 0];
    const mesh = rodMesh([{ from, to, r0: 0.5, r1: 0.25, value: 0.3 }]);
    for (let i = 0; i < mesh.values.length; i++) {
      const [end, radius] = i % 2 ? [to, 0.25] : [from, 0.5];
      const arm = minus(vertex(mesh, i), end);
      assert.ok(Math.abs(Math.hypot(...arm) - radius) < 1e-6);
      assert.ok(Math.abs(dot(arm, minus(to, from))) < 1e-5);
      assert.ok(Math.abs(dot(arm, normal(mesh, i)) - radius) < 1e-6);
    }
    assert.ok(mesh.triangles.every((i) => i < mesh.values.length));
  }
});

test("arrows end at the points that moved, and points that rest have none", () => {
  const rest = Float32Array.of(0, 0, 0, 9, 0, 0);
  const moved = Float32Array.of(0, 0, 4, 9, 0, 0.01);
  const mesh = arrowMesh([0, 1], rest, moved, Float32Array.of(4, 0.01), 4, 1);
  const heights = Array.from(mesh.values, (_, i) => vertex(mesh, i)[2]);
  assert.equal(Math.max(...heights), 4);
  assert.equal(Math.min(...heights), 0);
  assert.ok(mesh.values.every((v) => v === 1));
  // The head ends in a point.
  heights.forEach((z, i) => {
    if (z === 4) assert.deepEqual(vertex(mesh, i), [0, 0, 4]);
  });
  // A shaft and a head of one arrow.
  assert.equal(
    mesh.values.length,
    2 * rodMesh([{ from: [0, 0, 0], to: [0, 0, 1], r0: 1, r1: 1, value: 0 }]).values.length,
  );
});

test("a trace connects neighbours, and not two chains", () => {
  const places = Float32Array.of(0, 0, 0, 4, 0, 0, 90, 0, 0, 94, 0, 0);
  const mesh = traceMesh(places, [1, 0, 1, 0], 1);
  const along = Array.from(mesh.values, (_, i) => Math.round(vertex(mesh, i)[0]));
  assert.deepEqual(
    [...new Set(along)].toSorted((a, b) => a - b),
    [0, 4, 90, 94],
  );
  assert.equal(
    mesh.triangles.length,
    2 * rodMesh([{ from: [0, 0, 0], to: [1, 0, 0], r0: 1, r1: 1, value: 0 }]).triangles.length,
  );
});
