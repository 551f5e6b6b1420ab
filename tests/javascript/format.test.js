// Numbers, coordinates and sentences as text.

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  angstroms,
  coordinatesText,
  count,
  describe,
  explains,
  number,
  polygonText,
  rangeText,
  sentence,
  signed,
  tickLabel,
  typeset,
} from "../../dynamight_core/analysis/explorer/assets/format.js";

test("numbers have three digits, or a power of ten where they are long", () => {
  const expected = {
    0: "0",
    12.345: "12.3",
    1090.4: "1090",
    0.00123: "0.00123",
    "-2.5": "-2.5",
    123456: "1.23e+5",
    1e-5: "0.0000100",
  };
  for (const [value, text] of Object.entries(expected)) assert.equal(number(Number(value)), text);
  assert.equal(number(NaN), "–");
  assert.equal(number(Math.PI, 5), "3.1416");
});

test("coordinates have a sign unless they round to zero", () => {
  assert.deepEqual([3.87, -3.87, 0.04, -0.04, 0].map(signed), ["+3.9", "−3.9", "0.0", "0.0", "0.0"]);
});

test("labels of ticks have no rounding errors and a true minus", () => {
  assert.deepEqual([3 * 0.2, -4, 0].map(tickLabel), ["0.6", "−4", "0"]);
});

test("counts are separated by thousands", () => assert.equal(count(327490), "327,490"));

test("a message becomes a sentence", () => {
  assert.equal(sentence("port 80 is in use"), "Port 80 is in use.");
  assert.equal(sentence("Is it running?"), "Is it running?");
});

test("texts of the command line get the signs of a page", () => {
  assert.equal(
    typeset("by 5.6 A rms (+0.06 +- 0.02; 13.3 -> 9.3 A). A part"),
    "by 5.6 Å rms (+0.06 ± 0.02; 13.3 → 9.3 Å). A part",
  );
});

test("a conformation is named by the motions that differ from the mean", () => {
  assert.equal(describe([2, 0.03, -1.26, 0.1], [0, 0, 0, 0]), "motion 1 +2.0, motion 3 −1.3, motion 4 +0.1 Å rms");
  assert.equal(describe([0.51, 0], [0.5, 0]), "the mean");
});

test("options are numbers that the command line reads", () => {
  assert.equal(coordinatesText([-2.00004, 0, 1e-7]), "-2,0,1.000e-7");
  const text = polygonText(
    [1, 3],
    [
      [0.5, -0.8],
      [2.123456, 0],
      [0, 1],
    ],
  );
  assert.equal(text, "1,3:0.5,-0.8:2.12,0:0,1");
});

test("small parts of the variance are not rounded to nothing", () => {
  const expected = { 0.993: "99 %", 0.0063: "0.6 %", 0.0949: "9.5 %", 0.0003: "below 0.1 %", 0.0005: "0.1 %" };
  for (const [fraction, text] of Object.entries(expected))
    assert.equal(explains(Number(fraction)), `${text} of variance`);
});

test("without a motion along Y, a region is the range along X", () => {
  const corners = [
    [0.5, 0.02],
    [2.1234, 0.1],
    [1, 0],
  ];
  assert.equal(rangeText(3, corners), "3:0.5:2.12");
  assert.equal(polygonText([3, 0], corners), "3,3:0.5,0.5:2.12,0.5:2.12,2.12:0.5,2.12");
});

test("resolutions have two digits", () => {
  assert.deepEqual([13.87, 9.04, 9.0, 124.4, 0.86].map(angstroms), ["14", "9.0", "9.0", "124", "0.86"]);
});

test("a region of the UMAP has no motions", () => {
  const corners = [
    [0.5, -0.8],
    [2, 0],
    [0, 1],
  ];
  assert.equal(polygonText([-1, -2], corners), "umap:0.5,-0.8:2,0:0,1");
});
