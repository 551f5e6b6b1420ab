// Bytes of an answer, as Python packs them.

import assert from "node:assert/strict";
import { test } from "node:test";
import { unpack } from "../../dynamight_core/analysis/explorer/assets/answer.js";

// A head of JSON, and arrays that each begin at a multiple of four bytes.
function packed(head, arrays) {
  const text = JSON.stringify(head);
  const bytes = new TextEncoder().encode(text + " ".repeat(-text.length & 3));
  const length = new Uint8Array(Uint32Array.of(bytes.length).buffer);
  const padded = arrays.map((array) => {
    const raw = new Uint8Array(array.buffer);
    return [...raw, ...new Array(-raw.length & 3).fill(0)];
  });
  return Uint8Array.from([...length, ...bytes, ...padded.flat()]).buffer;
}

test("an answer has its values and its arrays, with their shapes", () => {
  const levels = Uint8Array.of(1, 2, 3, 4, 5);
  const grid = Float32Array.of(0.5, NaN, -2, 7, 8, 9);
  const arrays = [
    { name: "levels", type: "u1", shape: [5] },
    { name: "grid", type: "f4", shape: [2, 3] },
  ];
  const found = unpack(packed({ values: { particles: 7 }, arrays }, [levels, grid]));
  assert.equal(found.particles, 7);
  assert.deepEqual([...found.levels], [...levels]);
  assert.deepEqual([...found.grid], [...grid]);
  assert.deepEqual(found.grid.shape, [2, 3]);
});

test("an answer without arrays is its values", () => {
  assert.deepEqual(unpack(packed({ values: { added: ["a"] }, arrays: [] }, [])), { added: ["a"] });
});
