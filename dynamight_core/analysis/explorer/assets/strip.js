// The chosen states side by side, each in the colour of its dot in the landscape.

import { element } from "./dom.js";

// Fill a box with pictures of the states of a film, which follow when it is turned.
export function showStates(box, film) {
  const { states } = film.data;
  const surfaces = film.stateSurfaces();
  const pictures = states.map(({ name, colour }) => {
    const canvas = element("canvas", { role: "img", ariaLabel: `state ${name}` });
    const dot = element("span", { className: "dot", textContent: name });
    dot.style.background = colour;
    return { canvas, figure: element("figure", {}, canvas, dot) };
  });
  box.replaceChildren(...pictures.map(({ figure }) => figure));
  const { molecule } = film;
  const paint = () => {
    const shown = molecule.surfaces;
    surfaces.forEach((surface, i) => {
      const { canvas } = pictures[i];
      molecule.surfaces = [surface];
      molecule.draw();
      [canvas.width, canvas.height] = [molecule.canvas.width, molecule.canvas.height];
      canvas.getContext("2d").drawImage(molecule.canvas, 0, 0);
    });
    molecule.surfaces = shown;
    molecule.redraw();
  };
  paint();
  molecule.onTurn = paint;
}
