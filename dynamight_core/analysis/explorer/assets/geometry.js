// Geometry in three dimensions: points are flat arrays [x, y, z, x, ...], rotations flat 3 x 3 matrices by rows.

export const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

export function product(a, b) {
  const out = new Array(9).fill(0);
  for (let i = 0; i < 3; i++)
    for (let j = 0; j < 3; j++) for (let k = 0; k < 3; k++) out[3 * i + j] += a[3 * i + k] * b[3 * k + j];
  return out;
}

// Return the rotation about the screen's x (0) or y (1) axis.
export function rotationAbout(axis, angle) {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return axis ? [c, 0, s, 0, 1, 0, -s, 0, c] : [1, 0, 0, 0, c, -s, 0, s, c];
}

// Return point i, rotated about a centre.
export function rotated(rotation, centre, points, i) {
  const p = [0, 1, 2].map((a) => points[3 * i + a] - centre[a]);
  return [0, 3, 6].map((r) => rotation[r] * p[0] + rotation[r + 1] * p[1] + rotation[r + 2] * p[2]);
}

// Set moved = rest + sum over k of at[k] * motions[k].
export function displace({ rest, motions, moved }, at) {
  moved.set(rest);
  at.forEach((c, k) => {
    if (c) for (let i = 0, m = k * rest.length; i < rest.length; i++, m++) moved[i] += c * motions[m];
  });
}

// Set the length of each point's displacement; returns the largest.
export function displacementSizes(rest, moved, sizes) {
  let top = 0;
  for (let i = 0; i < sizes.length; i++) {
    sizes[i] = Math.hypot(
      moved[3 * i] - rest[3 * i],
      moved[3 * i + 1] - rest[3 * i + 1],
      moved[3 * i + 2] - rest[3 * i + 2],
    );
    top = Math.max(top, sizes[i]);
  }
  return top;
}

// Return the centre of the points' bounding box and half its diagonal.
export function boundingSphere(points) {
  const [low, high] = [
    [Infinity, Infinity, Infinity],
    [-Infinity, -Infinity, -Infinity],
  ];
  points.forEach((v, i) => {
    low[i % 3] = Math.min(low[i % 3], v);
    high[i % 3] = Math.max(high[i % 3], v);
  });
  return { centre: low.map((v, a) => (v + high[a]) / 2), radius: Math.hypot(...low.map((v, a) => high[a] - v)) / 2 };
}

// Return indices of n points: the first, then each the one farthest from those before it.
export function spreadOut(points, n) {
  const total = points.length / 3;
  const chosen = [0];
  const distance = new Float32Array(total).fill(Infinity);
  while (chosen.length < Math.min(n, total)) {
    const last = 3 * chosen[chosen.length - 1];
    let best = 0;
    for (let i = 0; i < total; i++) {
      const d =
        (points[3 * i] - points[last]) ** 2 +
        (points[3 * i + 1] - points[last + 1]) ** 2 +
        (points[3 * i + 2] - points[last + 2]) ** 2;
      if (d < distance[i]) distance[i] = d;
      if (distance[i] > distance[best]) best = i;
    }
    chosen.push(best);
  }
  return chosen;
}
