// Geometry of the landscape.

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  isInside,
  panned,
  plotArea,
  pointStyle,
  thinned,
  ticks,
  toPlane,
  toScreen,
  viewAll,
  zoomed,
} from "../../dynamight_core/analysis/explorer/assets/plane.js";

const area = plotArea(640, 480);
const view = { x: [-6, 8], y: [-0.5, 0.7] };
const close = (found, expected) =>
  found.forEach((v, i) => {
    assert.ok(Math.abs(v - expected[i]) < 1e-9, `${found} is not ${expected}`);
  });

test("a pixel's point in the plane is drawn at that pixel", () => {
  for (const pixel of [
    [100, 50],
    [630, 400],
    [-20, 900],
  ])
    close(toScreen(view, area, toPlane(view, area, pixel)), pixel);
});

test("Y of the plane grows upwards, and the view fills the area", () => {
  close(toScreen(view, area, [-6, 0.7]), [area.left, area.top]);
  close(toScreen(view, area, [8, -0.5]), [area.left + area.width, area.top + area.height]);
  assert.ok(isInside(area, toScreen(view, area, [0, 0])));
  assert.ok(!isInside(area, toScreen(view, area, [9, 0])));
});

test("a dragged point follows the mouse", () => {
  const [from, shift] = [
    [200, 300],
    [35, -60],
  ];
  const held = toPlane(view, area, from);
  close(toScreen(panned(view, area, shift), area, held), [from[0] + shift[0], from[1] + shift[1]]);
});

test("zooming keeps the point under the mouse and scales both sides", () => {
  const pixel = [400, 120];
  const held = toPlane(view, area, pixel);
  const near = zoomed(view, held, 0.5);
  close(toScreen(near, area, held), pixel);
  close([near.x[1] - near.x[0], near.y[1] - near.y[0]], [7, 0.6]);
});

test("the view of all points has room around them, also where they are all alike", () => {
  const all = viewAll([-5, -1], [5, -1]);
  assert.ok(all.x[0] < -5 && all.x[1] > 5);
  assert.ok(all.y[0] < -1 && all.y[1] > -1);
});

test("ticks are round values inside the range, evenly spaced", () => {
  assert.deepEqual(ticks([-6, 8], 7), [-6, -4, -2, 0, 2, 4, 6, 8]);
  for (const [range, n] of [
    [[-0.53, 0.61], 8],
    [[1234, 1297], 5],
    [[-3e-4, 2e-4], 6],
  ]) {
    const found = ticks(range, n);
    assert.ok(found.length >= 2 && found.length <= n + 1, `${found}`);
    const step = found[1] - found[0];
    const digit = step / 10 ** Math.floor(Math.log10(step) + 1e-9);
    assert.ok(
      [1, 2, 5].some((d) => Math.abs(d - digit) < 1e-6),
      `a step of ${step}`,
    );
    for (const v of found) assert.ok(v >= range[0] && v <= range[1]);
  }
});

test("a thinned line keeps its ends and its order", () => {
  const points = Array.from({ length: 1000 }, (_, i) => [i, -i]);
  const found = thinned(points, 80);
  assert.equal(found.length, 80);
  assert.deepEqual([found[0], found.at(-1)], [points[0], points.at(-1)]);
  assert.ok(found.every((p, i) => i === 0 || p[0] > found[i - 1][0]));
  assert.equal(thinned(points.slice(0, 5), 80).length, 5);
});

test("more points are smaller and fainter, within limits", () => {
  const styles = [1, 1000, 30000, 400000].map(pointStyle);
  for (const [i, { size, opacity }] of styles.entries()) {
    assert.ok(size >= 1.6 && size <= 6 && opacity >= 0.25 && opacity <= 0.85);
    if (i) assert.ok(size <= styles[i - 1].size && opacity <= styles[i - 1].opacity);
  }
});
