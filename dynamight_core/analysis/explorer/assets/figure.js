// Figures to keep: what a panel shows as PNG, or as SVG with its axes as lines and text.

import { element, themeColour } from "./dom.js";

// A 2-D context that writes SVG: as much of it as the landscape draws with.
class SvgContext {
  constructor() {
    this.parts = [];
    this.groups = [0];
    this.path = "";
    Object.assign(this, { lineWidth: 1, globalAlpha: 1, textAlign: "left", font: "12px sans-serif" });
  }
  beginPath() {
    this.path = "";
  }
  moveTo(x, y) {
    this.path += `M${x.toFixed(1)} ${y.toFixed(1)}`;
  }
  lineTo(x, y) {
    this.path += `L${x.toFixed(1)} ${y.toFixed(1)}`;
  }
  closePath() {
    this.path += "Z";
  }
  arc(x, y, r) {
    this.path = `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`;
  }
  rect(x, y, w, h) {
    this.path = `M${x} ${y}h${w}v${h}h${-w}Z`;
  }
  strokeRect(x, y, w, h) {
    this.rect(x, y, w, h);
    this.stroke();
  }
  stroke() {
    this.parts.push(
      `<path d="${this.path}" fill="none" stroke="${this.strokeStyle}" stroke-width="${this.lineWidth}"/>`,
    );
  }
  fill() {
    this.parts.push(`<path d="${this.path}" fill="${this.fillStyle}" fill-opacity="${this.globalAlpha}"/>`);
  }
  fillText(text, x, y) {
    const anchor = { center: "middle", right: "end" }[this.textAlign] ?? "start";
    const style = `style="font:${this.font.replaceAll('"', "'")}" text-anchor="${anchor}" fill="${this.fillStyle}"`;
    this.parts.push(`<text x="${x}" y="${y}" ${style}>${text.replaceAll("&", "&amp;").replaceAll("<", "&lt;")}</text>`);
  }
  clip() {
    const name = `clip${this.parts.length}`;
    this.parts.push(`<clipPath id="${name}"><path d="${this.path}"/></clipPath><g clip-path="url(#${name})">`);
    this.groups[this.groups.length - 1]++;
  }
  save() {
    this.groups.push(0);
  }
  restore() {
    this.parts.push("</g>".repeat(this.groups.pop()));
  }
  translate(x, y) {
    this.group(`translate(${x} ${y})`);
  }
  rotate(angle) {
    this.group(`rotate(${(180 * angle) / Math.PI})`);
  }
  group(transform) {
    this.parts.push(`<g transform="${transform}">`);
    this.groups[this.groups.length - 1]++;
  }
}

function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Return canvases of one size laid over each other, on the panel's ground.
function overlaid(canvases) {
  const { width, height } = canvases[0];
  const picture = element("canvas", { width, height });
  const context = picture.getContext("2d");
  context.fillStyle = themeColour("--card");
  context.fillRect(0, 0, width, height);
  for (const canvas of canvases) context.drawImage(canvas, 0, 0, width, height);
  return picture;
}

// Return one canvas with several next to each other.
export function sideBySide(canvases) {
  const [width, height] = [canvases.reduce((sum, { width: w }) => sum + w, 0), canvases[0].height];
  const picture = element("canvas", { width, height });
  const context = picture.getContext("2d");
  let left = 0;
  for (const canvas of canvases) {
    context.drawImage(canvas, left, 0);
    left += canvas.width;
  }
  return picture;
}

export const savePng = (canvases, name) => overlaid(canvases).toBlob((blob) => download(blob, `${name}.png`));

// Return an SVG of pictures beneath what `draw` draws on a context.
export function svgText(canvases, draw) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvases[0].width / ratio, canvases[0].height / ratio];
  const context = new SvgContext();
  draw(context);
  const picture = `<image width="${width}" height="${height}" href="${overlaid(canvases).toDataURL()}"/>`;
  const size = `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"`;
  return `<svg ${SPACE} ${size}>${picture}${context.parts.join("")}</svg>`;
}

export function saveSvg(canvases, draw, name) {
  download(new Blob([svgText(canvases, draw)], { type: "image/svg+xml" }), `${name}.svg`);
}

// The name space that readers of SVG files ask for; it is not loaded.
const SPACE = `xmlns="${["http:", "", "www.w3.org", "2000", "svg"].join("/")}"`;
