// Paths through coordinates (Å rms): corners are arrays of one coordinate per motion.

const segmentLengths = (corners) => corners.slice(1).map((c, i) => Math.hypot(...c.map((v, k) => v - corners[i][k])));

export const pathLength = (corners) => segmentLengths(corners).reduce((a, b) => a + b, 0);

// Return n points evenly spaced along the path, both ends included.
export function alongPath(corners, n) {
  const lengths = segmentLengths(corners);
  const total = pathLength(corners);
  return Array.from({ length: n }, (_, step) => {
    let left = (total * step) / (n - 1);
    let i = 0;
    while (i < lengths.length - 1 && left > lengths[i]) left -= lengths[i++];
    return corners[i].map((v, k) => v + ((corners[i + 1][k] - v) * left) / (lengths[i] || 1));
  });
}

// Return the order in which n frames play forwards and backwards, without repeating the ends.
export const thereAndBack = (n) =>
  Array.from({ length: Math.max(1, 2 * n - 2) }, (_, i) => (i < n ? i : 2 * n - 2 - i));
