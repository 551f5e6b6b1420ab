// The background of the landscape as pixels.

import { blend } from "./colours.js";

// Return the value of the strongest colour: nearly the largest, so that single bins do not set the scale.
export function rasterTop(grid) {
  const known = grid.filter(Number.isFinite).sort();
  return (known.length && known[Math.floor(0.995 * (known.length - 1))]) || 1;
}

// Return RGBA of an [x, y] grid, rows from the top; values from 0 to `top`, bins without a value transparent.
export function rasterPixels(grid, top, colours, opaque) {
  const [nx, ny] = grid.shape;
  const pixels = new Uint8ClampedArray(4 * nx * ny);
  for (let i = 0; i < nx; i++) {
    for (let j = 0; j < ny; j++) {
      const t = grid[i * ny + j] / top;
      if (!Number.isFinite(t)) continue;
      // A density fades into nothing, a free energy does not.
      pixels.set([...blend(colours, t), opaque ? 255 : Math.min(255, 3000 * t)], 4 * (i + nx * (ny - 1 - j)));
    }
  }
  return pixels;
}
