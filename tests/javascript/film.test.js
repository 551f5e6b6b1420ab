// The molecule's film: displacements of vertices, and normals.

import assert from "node:assert/strict";
import { test } from "node:test";
import { meshNormals, shiftsAt } from "../../dynamight_core/analysis/explorer/assets/film.js";
import { remark } from "../../dynamight_core/analysis/explorer/assets/format.js";

test("vertices between voxels move by what lies between their displacements", () => {
  const shifts = Object.assign(new Uint16Array(2 * 2 * 2 * 3).fill(32767.5), { shape: [1, 2, 2, 2, 3] });
  // The voxels of high x move by the whole reach along y.
  for (let voxel = 1; voxel < 8; voxel += 2) shifts[3 * voxel + 1] = 65535;
  const data = { shifts, surface: { first: [0, 0, 0], spacing: 1, reach: 4 } };
  const mesh = { positions: Float32Array.from([0, 0, 0, 1, 1, 1, 1.99, 0, 0]) };
  const found = shiftsAt(mesh, data, 0);
  [0, 2, 3.98].forEach((expected, i) => {
    assert.ok(Math.abs(found[3 * i + 1] - expected) < 0.01);
    assert.ok(Math.abs(found[3 * i]) < 0.01);
  });
});

test("normals are upright on a triangle and point to the given side", () => {
  const mesh = {
    positions: [0, 0, 0, 1, 0, 0, 0, 1, 0],
    triangles: [0, 1, 2],
    normals: [0, 0, -1, 0, 0, -1, 0, 0, -1],
  };
  const found = meshNormals({ ...mesh, positions: Float32Array.from(mesh.positions) });
  assert.deepEqual(
    Array.from(found, (v) => Math.round(v) || 0),
    [0, 0, -1, 0, 0, -1, 0, 0, -1],
  );
});

test("a subset of one half-set, or of none, is told", () => {
  assert.equal(remark([3, 4]), "");
  assert.match(remark([0, 4]), /half-set 2/);
  assert.match(remark([0, 0]), /empty/);
});
