// Paths through coordinates.

import assert from "node:assert/strict";
import { test } from "node:test";
import { alongPath, pathLength, thereAndBack } from "../../dynamight_core/analysis/explorer/assets/paths.js";

const corners = [
  [0, 0, 0],
  [3, 4, 0],
  [3, 4, 10],
];

test("a path is as long as its segments", () => assert.equal(pathLength(corners), 15));

test("points lie evenly along the path, from its first corner to its last", () => {
  const points = alongPath(corners, 31);
  assert.deepEqual([points[0], points.at(-1)], [corners[0], corners[2]]);
  // Every step is as long, as all corners are on points here.
  for (let i = 1; i < points.length; i++) assert.ok(Math.abs(pathLength(points.slice(i - 1, i + 1)) - 0.5) < 1e-9);
  assert.ok(points.some((p) => p.every((v, k) => Math.abs(v - corners[1][k]) < 1e-9)));
});

test("a corner that is clicked twice is no obstacle", () => {
  const points = alongPath([corners[0], corners[0], corners[1]], 3);
  assert.deepEqual(points, [corners[0], [1.5, 2, 0], corners[1]]);
});

test("a path plays forwards and backwards without resting at its ends", () => {
  assert.deepEqual(thereAndBack(4), [0, 1, 2, 3, 2, 1]);
  assert.deepEqual(thereAndBack(2), [0, 1]);
  assert.deepEqual(thereAndBack(1), [0]);
});
