// Geometry of the landscape: a view { x: [low, high], y: [low, high] } (Å rms) drawn in an area of the canvas (pixels).

const MARGIN = { left: 58, right: 14, top: 12, bottom: 40 };

// Return the area of a canvas inside its axes.
export function plotArea(width, height) {
  return {
    left: MARGIN.left,
    top: MARGIN.top,
    width: Math.max(10, width - MARGIN.left - MARGIN.right),
    height: Math.max(10, height - MARGIN.top - MARGIN.bottom),
  };
}

export const isInside = (area, [px, py]) =>
  px >= area.left && px <= area.left + area.width && py >= area.top && py <= area.top + area.height;

export function toScreen({ x: [x0, x1], y: [y0, y1] }, area, [x, y]) {
  return [area.left + ((x - x0) / (x1 - x0)) * area.width, area.top + ((y1 - y) / (y1 - y0)) * area.height];
}

export function toPlane({ x: [x0, x1], y: [y0, y1] }, area, [px, py]) {
  return [x0 + ((px - area.left) / area.width) * (x1 - x0), y1 - ((py - area.top) / area.height) * (y1 - y0)];
}

// Return the view of all points from low to high, with a margin.
export function viewAll(low, high) {
  const [x, y] = [0, 1].map((i) => {
    const room = 0.04 * (high[i] - low[i]) || 1;
    return [low[i] - room, high[i] + room];
  });
  return { x, y };
}

// Return a view in which an Å is as long on both axes, with all of the one given.
export function squared({ x, y }, area) {
  const scale = Math.max((x[1] - x[0]) / area.width, (y[1] - y[0]) / area.height);
  const around = ([low, high], n) => [(low + high - scale * n) / 2, (low + high + scale * n) / 2];
  return { x: around(x, area.width), y: around(y, area.height) };
}

// Return a view dragged by some pixels.
export function panned({ x, y }, area, [dx, dy]) {
  const shift = [(dx / area.width) * (x[1] - x[0]), (-dy / area.height) * (y[1] - y[0])];
  return { x: x.map((v) => v - shift[0]), y: y.map((v) => v - shift[1]) };
}

// Return a view whose sides are `factor` as long; the point [x, y] stays where it is.
export function zoomed(view, [x, y], factor) {
  return { x: view.x.map((v) => x + (v - x) * factor), y: view.y.map((v) => y + (v - y) * factor) };
}

// Return about n round values inside a range.
export function ticks([low, high], n) {
  const step = (high - low) / Math.max(2, n);
  const power = 10 ** Math.floor(Math.log10(step));
  const round = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= step);
  const out = [];
  for (let i = Math.ceil(low / round); i * round <= high; i++) out.push(i * round);
  return out;
}

// Return at most n of the points of a line, those that its shape needs most (Douglas and Peucker), in their order.
export function thinned(points, n) {
  if (points.length <= n) return points;
  const kept = new Set([0, points.length - 1]);
  const farthest = (first, last) => {
    const [[x0, y0], [x1, y1]] = [points[first], points[last]];
    const length = Math.hypot(x1 - x0, y1 - y0);
    let best = { distance: -1, at: first, first, last };
    for (let i = first + 1; i < last; i++) {
      const [x, y] = points[i];
      const across = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0);
      const distance = length ? Math.abs(across) / length : Math.hypot(x - x0, y - y0);
      if (distance > best.distance) best = { distance, at: i, first, last };
    }
    return best;
  };
  let parts = [farthest(0, points.length - 1)];
  while (kept.size < n) {
    const next = parts.reduce((a, b) => (b.distance > a.distance ? b : a));
    if (next.distance < 0) break;
    kept.add(next.at);
    parts = parts.filter((part) => part !== next);
    parts.push(farthest(next.first, next.at), farthest(next.at, next.last));
  }
  return [...kept].sort((a, b) => a - b).map((i) => points[i]);
}

// Return size (pixels) and opacity of each of n points.
export function pointStyle(n) {
  const root = Math.sqrt(n + 1);
  return { size: Math.min(6, Math.max(1.6, 260 / root)), opacity: Math.min(0.85, Math.max(0.25, 60 / root)) };
}
