// All pairs of motions: the distribution along each on the diagonal, and below it the density in each pair's plane.

import { clearedContext, oncePerFrame, strokeLine } from "./canvas.js";
import { BLUES, GREY } from "./colours.js";
import { element, isDark, themeColour } from "./dom.js";
import { tickLabel } from "./format.js";
import { ticks } from "./plane.js";
import { rasterPixels, rasterTop } from "./raster.js";

// Room for names and numbers at the left and below, and between the panels, pixels.
const PANEL_MARGIN = { left: 46, bottom: 34, top: 8, right: 8 };
const GAP = 8;

export class Pairs {
  // `choose(first, second)` is called with the motions of the panel that is clicked; of the diagonal, with one.
  constructor(container, choose) {
    [this.back, this.front] = container.querySelectorAll("canvas");
    this.buttons = container.querySelector("div");
    this.choose = choose;
    this.data = null;
    this.redraw = oncePerFrame(() => this.draw());
    new ResizeObserver(this.redraw).observe(container);
  }

  get canvases() {
    return [this.back];
  }

  // Show counts of motions, as the action `pairs` returns them; those `isGrey` are not shared by the half-sets.
  setData(found, motions, isGrey) {
    this.data = { ...found, motions, isGrey };
    const inside = motions.flatMap((second, i) =>
      motions.slice(0, i + 1).map((first, j) => {
        const isAlone = i === j;
        const what = isAlone ? `Distribution along motion ${first}` : `Plane of motions ${first} and ${second}`;
        const button = element("button", { type: "button", title: what, ariaLabel: what, className: "panel" });
        button.addEventListener("click", () => this.choose(first, isAlone ? undefined : second));
        return { button, row: i, column: j };
      }),
    );
    this.panels = inside;
    this.buttons.replaceChildren(...inside.map(({ button }) => button));
    this.redraw();
  }

  get area() {
    const { clientWidth: width, clientHeight: height } = this.front;
    const k = this.data.motions.length;
    const size = (all, before, after) => (all - before - after - GAP * (k - 1)) / k;
    return {
      w: size(width, PANEL_MARGIN.left, PANEL_MARGIN.right),
      h: size(height, PANEL_MARGIN.top, PANEL_MARGIN.bottom),
    };
  }

  cornerOf(row, column) {
    const { w, h } = this.area;
    return [PANEL_MARGIN.left + column * (w + GAP), PANEL_MARGIN.top + row * (h + GAP)];
  }

  draw() {
    if (!this.data || !this.front.clientWidth) return;
    const context = clearedContext(this.back);
    const { w, h } = this.area;
    for (const { button, row, column } of this.panels) {
      const [x, y] = this.cornerOf(row, column);
      Object.assign(button.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px` });
      if (row === column) this.drawAlone(context, row, [x, y, w, h]);
      else context.drawImage(this.picture(row, column), x, y, w, h);
    }
    this.drawFront();
  }

  colourOf(index) {
    return this.data.isGrey[index] ? GREY : themeColour("--accent");
  }

  drawAlone(context, index, [x, y, w, h]) {
    const { alone } = this.data;
    const bins = alone.shape[1];
    const counts = alone.subarray(index * bins, (index + 1) * bins);
    const top = Math.max(...counts, 1);
    context.fillStyle = this.colourOf(index);
    counts.forEach((n, i) => {
      context.fillRect(x + (i * w) / bins, y + h - (0.95 * h * n) / top, Math.ceil(w / bins), (0.95 * h * n) / top);
    });
  }

  // Return the density of a pair as a picture, the motion of the column along X.
  picture(row, column) {
    const { pairs } = this.data;
    const [, k, bins] = pairs.shape;
    const at = (column * k + row) * bins * bins;
    const grid = Object.assign(pairs.slice(at, at + bins * bins), { shape: [bins, bins] });
    const isGrey = this.data.isGrey[row] || this.data.isGrey[column];
    const colours = isGrey ? [themeColour("--card"), GREY] : BLUES[isDark() ? "dark" : "light"];
    const image = element("canvas", { width: bins, height: bins });
    image
      .getContext("2d")
      .putImageData(new ImageData(rasterPixels(grid, rasterTop(grid), colours, false), bins, bins), 0, 0);
    return image;
  }

  // Draw frames, names and numbers, by default on the foremost canvas.
  drawFront(context = clearedContext(this.front)) {
    const { motions, ends } = this.data;
    const { w, h } = this.area;
    context.strokeStyle = context.fillStyle = themeColour("--soft");
    context.lineWidth = 1;
    context.font = `12px ${themeColour("--sans")}`;
    for (const { row, column } of this.panels) context.strokeRect(...this.cornerOf(row, column), w, h);
    motions.forEach((motion, i) => {
      const [low, high] = [ends[2 * i], ends[2 * i + 1]];
      const [x, y] = this.cornerOf(motions.length - 1, i);
      context.textAlign = "center";
      for (const value of ticks([low, high], w / 60)) {
        const px = x + ((value - low) / (high - low)) * w;
        strokeLine(context, [
          [px, y + h],
          [px, y + h + 3],
        ]);
        context.fillText(tickLabel(value), px, y + h + 15);
      }
      context.fillText(`motion ${motion} (Å rms)`, x + w / 2, y + h + 30);
      const [left, top] = this.cornerOf(i, 0);
      if (i) {
        context.textAlign = "right";
        for (const value of ticks([low, high], h / 45)) {
          const py = top + h - ((value - low) / (high - low)) * h;
          context.fillText(tickLabel(value), left - 5, py + 4);
        }
      }
      context.textAlign = "center";
      context.save();
      context.translate(13, top + h / 2);
      context.rotate(-Math.PI / 2);
      context.fillText(i ? `motion ${motion}` : "particles", 0, 0);
      context.restore();
    });
  }
}
