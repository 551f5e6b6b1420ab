// Numbers, coordinates and sentences as text.

export function number(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 10000 || (size > 0 && size < 1e-3)) return value.toPrecision(digits);
  return String(Number(value.toPrecision(digits)));
}

// Return a length with two significant digits, and more where it is 100 Å or longer.
export function angstroms(value) {
  if (!Number.isFinite(value)) return "–";
  const decimals = Math.max(0, 1 - Math.floor(Math.log10(Math.max(Math.abs(value), 0.01))));
  return value.toFixed(decimals);
}

// Return a number to one decimal, with its sign unless it rounds to zero.
export function signed(value) {
  const text = Math.abs(value).toFixed(1);
  return (text === "0.0" ? "" : value > 0 ? "+" : "−") + text;
}

export const tickLabel = (value) => String(Number(value.toPrecision(6))).replace("-", "−");

// Return a whole number with separators of thousands.
export const count = (value) => value.toLocaleString("en");

// Return a message as a sentence.
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");

// Return a text of the command line with the signs that it has no letters for.
export const typeset = (text) =>
  text
    .replace(/(\d) A\b/g, "$1 Å")
    .replaceAll("+-", "±")
    .replaceAll("->", "→");

// Name the coordinates (Å rms) that differ from the mean.
export function describe(at, mean) {
  const moved = at.map((value, k) => [value, k]).filter(([value, k]) => Math.abs(value - mean[k]) > 0.05);
  return moved.length
    ? `${moved.map(([value, k]) => `motion ${k + 1} ${signed(value)}`).join(", ")} Å rms`
    : "the mean";
}

// Return coordinates as the option --at takes them.
export const coordinatesText = (at) => at.map((value) => number(value, 4)).join(",");

// Return a region as the option --polygon takes it: motions of the plane, or umap, then corners. Without a motion along
// Y, it is the range of X: a square whose diagonal holds the particles.
export function polygonText([first, second], corners) {
  const text = (values) => values.map((value) => number(value, 3)).join(",");
  if (first < 0) return ["umap", ...corners.map(text)].join(":");
  if (second) return [`${first},${second}`, ...corners.map(text)].join(":");
  const along = corners.map(([x]) => x);
  const [low, high] = [Math.min(...along), Math.max(...along)];
  const square = [
    [low, low],
    [high, low],
    [high, high],
    [low, high],
  ];
  return [`${first},${first}`, ...square.map(text)].join(":");
}

// Return the range of corners along a motion as the option --along takes it.
export function rangeText(motion, corners) {
  const along = corners.map(([x]) => x);
  return [motion, ...[Math.min(...along), Math.max(...along)].map((value) => number(value, 3))].join(":");
}

// Return what to know before a subset with these numbers of particles of the half-sets is saved.
export function remark([first, second]) {
  if (!first && !second) return "The selection is empty: it cannot be saved.";
  if (first && second) return "";
  return `All are of half-set ${first ? 1 : 2}: no second half-map can be made of them, and no FSC.`;
}

// Return how much of the variance a motion explains, as the report words it.
export function explains(fraction) {
  const percent = 100 * fraction;
  return `${percent < 0.05 ? "below 0.1" : percent.toFixed(percent < 9.5 ? 1 : 0)} % of variance`;
}
