// Colour scales, and the pixels of the background.

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  BLUES,
  blend,
  CATEGORIES,
  EARTH,
  gradient,
  MOTION,
  palette,
  rgb,
  VIRIDIS,
} from "../../dynamight_core/analysis/explorer/assets/colours.js";
import { rasterPixels, rasterTop } from "../../dynamight_core/analysis/explorer/assets/raster.js";

const scales = [VIRIDIS, MOTION, BLUES.light, BLUES.dark, EARTH.light, EARTH.dark];

test("every colour is six hexadecimal digits", () => {
  for (const colour of [...scales.flat(), ...CATEGORIES]) assert.match(colour, /^#[0-9a-f]{6}$/);
  assert.deepEqual(rgb("#ff8001"), [255, 128, 1]);
  assert.equal(gradient(["#000000", "#ffffff"]), "linear-gradient(90deg, #000000, #ffffff)");
});

test("a scale passes through its stops, is straight between them and ends where it ends", () => {
  for (const colours of scales) {
    const last = colours.length - 1;
    colours.forEach((colour, i) => {
      assert.deepEqual(blend(colours, i / last).map(Math.round), rgb(colour));
    });
    const [a, b] = [rgb(colours[0]), rgb(colours[1])];
    assert.deepEqual(
      blend(colours, 0.5 / last),
      a.map((v, k) => (v + b[k]) / 2),
    );
    assert.deepEqual(blend(colours, -3), blend(colours, 0));
    assert.deepEqual(blend(colours, 7), blend(colours, 1));
  }
});

test("a palette has the scale, or the categories, and the colour of missing values", () => {
  const numbers = palette(VIRIDIS, null, "#010203");
  const level = (colours, i) => [...colours.subarray(4 * i, 4 * i + 4)];
  assert.deepEqual(level(numbers, 0), [...rgb(VIRIDIS[0]), 255]);
  assert.deepEqual(level(numbers, 254), [...rgb(VIRIDIS.at(-1)), 255]);
  assert.deepEqual(level(numbers, 255), [1, 2, 3, 255]);
  const categories = palette(VIRIDIS, ["a", "b"], "#010203");
  assert.deepEqual(level(categories, 1), [...rgb(CATEGORIES[1]), 255]);
  assert.deepEqual(level(categories, CATEGORIES.length), level(categories, 0));
});

const grid = (values, shape) => Object.assign(Float32Array.from(values), { shape });

test("the background has the plane's orientation, and bins without a value are clear", () => {
  // [x, y]: two bins along x, three along y.
  const pixels = rasterPixels(grid([0, NaN, 1, 0.5, 1, 2], [2, 3]), 2, ["#000000", "#ffffff"], true);
  const at = (x, y) => [...pixels.subarray(4 * (x + 2 * (2 - y)), 4 * (x + 2 * (2 - y)) + 4)];
  assert.deepEqual(at(0, 0), [0, 0, 0, 255]);
  assert.deepEqual(at(0, 1), [0, 0, 0, 0]);
  assert.deepEqual(at(0, 2), [128, 128, 128, 255]);
  assert.deepEqual(at(1, 2), [255, 255, 255, 255]);
});

test("a density fades into nothing, a free energy does not", () => {
  const faint = grid([0, 1e-4], [1, 2]);
  const alphas = (opaque) => [7, 3].map((i) => rasterPixels(faint, 1, BLUES.light, opaque)[i]);
  assert.deepEqual(alphas(true), [255, 255]);
  assert.deepEqual(
    alphas(false),
    [0, 0].map((_, i) => Math.round(3000 * faint[i])),
  );
});

test("the scale of the background ignores single bins and missing values", () => {
  const values = Array.from({ length: 1000 }, (_, i) => i / 999);
  values[500] = 1e6;
  values[3] = NaN;
  assert.ok(Math.abs(rasterTop(grid(values, [10, 100])) - 0.995) < 0.01);
  assert.equal(rasterTop(grid([NaN, NaN], [1, 2])), 1);
  assert.equal(rasterTop(grid([0, 0], [1, 2])), 1);
});
