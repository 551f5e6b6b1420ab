// Views: what the page shows, kept under a name in the run's folder.

import { showBeside } from "./beside.js";
import { goTo, updateLevel } from "./conformations.js";
import { $, attempt, bold, element, fillMenu } from "./dom.js";
import { showFilter } from "./filter.js";
import { showPlot } from "./plots.js";
import { ask } from "./requests.js";
import { showResult } from "./result.js";
import { chart, page } from "./state.js";

// Menus and sliders, by their id.
const VALUES = ["group", "colour", "quantity", "half", "level", "beside-menu"];
let saved = {};

// Return what the page shows as plain values.
function currentView() {
  const { plot, plane, third, at, filter, landscape, molecule, cloud } = page;
  return {
    plot,
    plane,
    third,
    at,
    filter,
    values: Object.fromEntries(VALUES.map((id) => [id, $(id).value])),
    landscape: landscape.view,
    cloud: { rotation: cloud.rotation, zoom: cloud.zoom },
    molecule: { rotation: molecule.rotation, zoom: molecule.zoom, show: molecule.show },
  };
}

async function applyView(view) {
  const { molecule, cloud, landscape } = page;
  Object.assign(page, { plane: [...view.plane], third: view.third });
  for (const id of VALUES) $(id).value = view.values[id] ?? "";
  await showFilter(view.filter);
  await showPlot(view.plot);
  Object.assign(cloud, view.cloud);
  if (chart() === landscape) landscape.view = view.landscape;
  await goTo([...view.at]);
  for (const [part, on] of Object.entries(view.molecule.show)) {
    molecule.show[part] = on;
    $(`show-${part}`).checked = on;
  }
  Object.assign(molecule, { rotation: view.molecule.rotation, zoom: view.molecule.zoom });
  updateLevel();
  await showBeside();
  for (const each of [molecule, cloud, landscape]) each.redraw();
}

async function loadViews() {
  saved = (await ask("views")).views;
  const names = Object.keys(saved);
  $("view-label").hidden = !names.length;
  fillMenu($("view-menu"), [["", "choose…"], ...names.map((name) => [name, name])], "");
}

export async function connectViews() {
  $("view-save").addEventListener("click", () =>
    showResult(
      "View",
      "view",
      [],
      [
        [
          "The plot, its colours and filter, the conformation and the direction from which it is seen. Saved views are ",
          "in the menu ",
          bold("view"),
          ", also when the explorer is opened again.",
        ],
      ],
      saveView,
    ),
  );
  $("view-menu").addEventListener("change", () =>
    attempt(async () => {
      const view = saved[$("view-menu").value];
      $("view-menu").value = "";
      if (view) await applyView(view);
    }),
  );
  await loadViews();
}

async function saveView(name) {
  const { files } = await ask("save_view", { view: currentView(), name });
  await loadViews();
  const list = $("saved-list");
  if (list.querySelector(".soft")) list.replaceChildren();
  list.prepend(element("p", {}, bold(name), ` view: ${files[0]}`));
}
