// Geometry in three dimensions.

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  boundingSphere,
  cross,
  displace,
  displacementSizes,
  product,
  rotated,
  rotationAbout,
  spreadOut,
} from "../../dynamight_core/analysis/explorer/assets/geometry.js";

const close = (found, expected) =>
  Array.from(found).forEach((v, i) => {
    assert.ok(Math.abs(v - expected[i]) < 1e-6, `${found} is not ${expected}`);
  });
const IDENTITY = [1, 0, 0, 0, 1, 0, 0, 0, 1];

test("rotations keep lengths, add up, and have an inverse", () => {
  for (const axis of [0, 1]) {
    const half = rotationAbout(axis, 0.4);
    close(product(half, half), rotationAbout(axis, 0.8));
    close(product(half, rotationAbout(axis, -0.4)), IDENTITY);
    close([Math.hypot(...rotated(half, [0, 0, 0], [1, -2, 3], 0))], [Math.hypot(1, -2, 3)]);
  }
});

test("a drag to the right moves the front to the right, a drag down moves it down", () => {
  // The front is at positive z; the screen's y points up.
  assert.ok(rotated(rotationAbout(1, 0.1), [0, 0, 0], [0, 0, 1], 0)[0] > 0);
  assert.ok(rotated(rotationAbout(0, 0.1), [0, 0, 0], [0, 0, 1], 0)[1] < 0);
});

test("the centre of a rotation stays at the origin of the screen", () => {
  close(rotated(rotationAbout(1, 1), [4, 5, 6], [0, 0, 0, 4, 5, 6], 1), [0, 0, 0]);
});

test("a cross product is perpendicular to both vectors and right-handed", () => {
  assert.deepEqual(cross([1, 0, 0], [0, 1, 0]), [0, 0, 1]);
});

test("points move by the sum of the motions times their coordinates", () => {
  const rest = Float32Array.of(1, 2, 3, 4, 5, 6);
  const motions = Float32Array.of(1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0);
  const part = { rest, motions, moved: new Float32Array(6) };
  displace(part, [2, -1]);
  assert.deepEqual([...part.moved], [3, 2, 0, 4, 9, 6]);
  const sizes = new Float32Array(2);
  close([displacementSizes(rest, part.moved, sizes), ...sizes], [4, Math.hypot(2, 3), 4]);
  displace(part, [0, 0]);
  assert.deepEqual([...part.moved], [...rest]);
});

test("the bounding sphere holds all points", () => {
  const points = Float32Array.of(-1, 0, 0, 3, 2, 0, 1, 1, -6);
  const { centre, radius } = boundingSphere(points);
  close(centre, [1, 1, -3]);
  for (const i of [0, 1, 2]) assert.ok(Math.hypot(...rotated(IDENTITY, centre, points, i)) <= radius + 1e-9);
});

test("chosen points are spread out: each is the farthest from those before it", () => {
  const line = Float32Array.from([0, 1, 2, 10, 4].flatMap((x) => [x, 0, 0]));
  assert.deepEqual(spreadOut(line, 3), [0, 3, 4]);
  assert.deepEqual(spreadOut(line, 99).toSorted(), [0, 1, 2, 3, 4]);
});
