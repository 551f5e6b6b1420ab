// The first screen: the conclusion, the molecule as it moves, and what the map gained where it does.

import { $, element } from "./dom.js";
import { Film } from "./film.js";
import { sentence, typeset } from "./format.js";
import { showGain } from "./gain.js";
import { ask } from "./requests.js";
import { page } from "./state.js";

// Show the overview or the panels to explore; the address keeps which.
export function setView(view) {
  document.body.dataset.view = view;
  history.replaceState(null, "", `${location.search}#${view}`);
  // The browser may have gone to the element of that name, past the head of the page.
  scrollTo(0, 0);
  for (const button of document.querySelectorAll("[data-view]"))
    if (button.tagName === "BUTTON")
      button.setAttribute("aria-current", button.dataset.view === view ? "page" : "false");
  if (view === "explore") page.film?.play(false);
}

export function describeConclusion({ conclusion, warnings }) {
  const { motion, title, lead, certainty, map, advice } = conclusion;
  $("conclusion").classList.add(motion.replace(" ", "-"));
  $("conclusion").firstChild.textContent = `${title}.`;
  $("conclusion").lastChild.textContent = typeset(lead);
  $("certainty").textContent = typeset(certainty);
  $("gain-text").textContent = typeset(map);
  $("advice").textContent = typeset(advice);
  const reasons = [certainty, ...warnings, map].filter(Boolean);
  $("why").append(...reasons.map((text) => element("p", { textContent: sentence(typeset(text)) })));
}

export async function showOverview() {
  const { run } = page;
  const data = await ask("overview");
  if (data.surface) {
    page.film = new Film({ view: $("film"), legend: $("film-legend"), controls: $("film-controls") }, data);
    if (!data.motions.length) $("film-title").textContent = "The molecule";
  } else $("film").parentElement.hidden = true;
  page.landscape.states = data.states;
  $("gain-card").hidden = !data.gain;
  $("why").hidden = Boolean(data.gain) && run.conclusion.motion === "supported";
  // It is told beside the molecule already.
  $("certainty").parentElement.hidden = !$("why").hidden;
  page.overviewViews = data.gain ? showGain($("gain"), data) : [];
}
