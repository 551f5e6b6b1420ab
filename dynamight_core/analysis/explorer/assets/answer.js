// The bytes of an answer, as answer.py packs them.

const ARRAYS = { f4: Float32Array, u2: Uint16Array, u1: Uint8Array };

// Return the values of an answer with its arrays among them; each array has a `shape`.
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const answer = head.values;
  let at = 4 + length;
  for (const { name, type, shape } of head.arrays) {
    const n = shape.reduce((a, b) => a * b, 1);
    answer[name] = new ARRAYS[type](buffer, at, n);
    answer[name].shape = shape;
    at += Math.ceil(answer[name].byteLength / 4) * 4;
  }
  return answer;
}
