// A second view beside the model: a map of the run, or the state's own map from the images of the particles near it.

import { $, attempt, fillMenu } from "./dom.js";
import { count, describe } from "./format.js";
import { makeSurface } from "./meshes.js";
import { Molecule } from "./molecule.js";
import { ask } from "./requests.js";
import { page } from "./state.js";

const MAP_NAMES = {
  after: "map, motion corrected",
  before: "map, not corrected",
  consensus: "consensus map",
  local: "particles near the state",
};
const BESIDE_COLOUR = [0.3, 0.58, 0.68];
// What is asked how far a reconstruction is, ms.
const POLL = 500;

// The answer that is shown, and the contour of the model at which it has its own level.
let shown = null;

export function connectBeside() {
  const names = [...page.run.maps, "local"];
  fillMenu($("beside-menu"), [["", "nothing"], ...names.map((name) => [name, MAP_NAMES[name]])], "");
  $("beside-menu").addEventListener("change", () => attempt(showBeside));
  $("beside-update").addEventListener("click", () => attempt(reconstructHere));
  $("level").addEventListener("input", drawBeside);
}

export async function showBeside() {
  const name = $("beside-menu").value;
  shown = null;
  $("beside").hidden = !name;
  $("beside-update").hidden = name !== "local";
  if (!name) return;
  makeView();
  page.beside.showMeshes([]);
  $("beside-caption").textContent = name === "local" ? "" : MAP_NAMES[name];
  if (name === "local") await reconstructHere();
  else show(await ask("map_beside", { name }));
}

async function reconstructHere() {
  const at = [...page.at];
  $("beside-update").disabled = true;
  const timer = setInterval(async () => {
    const { stage, done, total } = await ask("progress");
    $("beside-caption").textContent = total ? `${stage} ${done} of ${total}` : "reconstructing…";
  }, POLL);
  try {
    const found = await ask("local_state", { at });
    clearInterval(timer);
    show(found);
    const words = `from about ${count(Math.round(found.particles))} particles near ${describe(at, page.run.mean)}`;
    $("beside-caption").textContent = words;
  } finally {
    clearInterval(timer);
    $("beside-update").disabled = false;
  }
}

function show(answer) {
  shown = { answer, contour: Number($("level").value) };
  drawBeside();
}

function drawBeside() {
  if (!shown || !page.beside.gl) return;
  const { answer, contour } = shown;
  const level = Math.min(250, (255 * answer.level * Number($("level").value)) / contour);
  const volume = { volume: answer.density, level, first: answer.first, spacing: answer.spacing };
  const look = { plain: BESIDE_COLOUR, plainWeight: 1, opacity: 1 };
  const values = { values: answer.displacement, coloursShape: answer.displacement.shape };
  page.beside.showMeshes([makeSurface({ ...volume, ...values, ...look })]);
}

// Make the view once; it turns with the model.
function makeView() {
  const { molecule } = page;
  if (!page.beside) {
    const { rest, n } = molecule.parts;
    const still = { rest, motions: new Float32Array(0), error: new Float32Array(n), view: molecule.firstRotation };
    page.beside = new Molecule($("beside"));
    page.beside.show = { surface: true, arrows: false, errors: false, points: false, trace: false };
    page.beside.setParts(still);
    page.beside.setCoordinates([]);
    for (const [own, other] of [
      [molecule, page.beside],
      [page.beside, molecule],
    ])
      own.onTurn = () => follow(other, own);
  }
  follow(page.beside, molecule);
}

function follow(view, leader) {
  view.rotation = leader.rotation;
  view.zoom = leader.zoom;
  view.redraw();
}
