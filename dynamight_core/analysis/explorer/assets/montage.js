// Images of some particles of a selection: raw, low-passed, as the model has them, and what remains.

import { $, element } from "./dom.js";
import { drawPicture } from "./gain.js";

export function showMontage(found) {
  const rows = [
    ["raw", "raw"],
    ["filtered", `low-passed to ${found.resolution} Å`],
    ["model", "model"],
    ["residual", "residual"],
  ];
  const [, height, width] = found.raw.shape;
  const size = width * height;
  const heads = found.rows.map((row, i) =>
    element("th", { textContent: `row ${row}, half ${found.halves[i]}`, scope: "col" }),
  );
  const lines = rows.map(([name, title]) => {
    const cells = found.rows.map((row, i) => {
      const picture = Object.assign(found[name].subarray(i * size, (i + 1) * size), { shape: [height, width] });
      const canvas = Object.assign(drawPicture(picture), { role: "img", ariaLabel: `${title}, row ${row}` });
      return element("td", {}, canvas);
    });
    return element("tr", {}, element("th", { textContent: title, scope: "row" }), ...cells);
  });
  $("montage-table").replaceChildren(element("tr", {}, element("td"), ...heads), ...lines);
  $("montage").showModal();
}
