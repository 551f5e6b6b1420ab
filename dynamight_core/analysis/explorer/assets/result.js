// The panel with the result of the last action, and the list of saved files.

import { $, attempt, bold, element, fillMenu } from "./dom.js";
import { count } from "./format.js";
import { ask, TOKEN } from "./requests.js";

// Per kind of result, the number in the next suggested name.
const counters = {};
const MAX_LINKS = 30;
let saveShown = null;

// Show a result; `saver` writes its files under a name, or is null where there is nothing to save.
export function showResult(title, kind, options, paragraphs, saver) {
  $("result-title").textContent = title;
  $("result-text").replaceChildren(...paragraphs.map((parts) => element("p", {}, ...parts)));
  $("save-options").replaceChildren(...options);
  $("save").hidden = !saver;
  $("save").dataset.kind = kind;
  counters[kind] ??= 1;
  suggestName(kind);
  saveShown = saver;
}

const suggestName = (kind) => {
  $("save-name").value = `${kind}-${counters[kind]}`;
};

export function listenToSave() {
  $("save").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(saveResult);
  });
}

async function saveResult() {
  const { kind } = $("save").dataset;
  $("save-button").disabled = true;
  const timer = setInterval(async () => {
    const { stage, done, total } = await ask("progress");
    $("save-progress").textContent = total ? `${stage} ${done} of ${total}` : "writing…";
  }, 500);
  try {
    await saveShown($("save-name").value.trim());
    counters[kind]++;
    suggestName(kind);
  } finally {
    clearInterval(timer);
    $("save-button").disabled = false;
    $("save-progress").textContent = "";
  }
}

// Write files by an action of the server, and list them with the commands that write the same.
export async function saveFiles(action, options, name) {
  const allowed = { use_unsupported_motion: $("use-unsupported").checked };
  const done = await ask(action, { options: { ...options, ...allowed }, name });
  const list = $("saved-list");
  if (list.querySelector(".soft")) list.replaceChildren();
  const links = done.files.slice(0, MAX_LINKS).flatMap((file) => {
    const download = file.split("/").pop();
    return [element("a", { href: `/files/${encodeURI(file)}?token=${TOKEN}`, download, textContent: download }), " "];
  });
  const folder = done.files[0].split("/").slice(0, -1).join("/");
  const what = done.particles ? `${count(done.particles)} particles: ` : `${done.files.length} files in ${folder}: `;
  list.prepend(
    element("p", {}, bold(name), " ", what, ...links),
    element("pre", { textContent: done.commands.join("\n") }),
  );
}

// A choice of what saved maps of states are made from.
export function methodMenu() {
  const menu = element("select", { id: "method" });
  fillMenu(
    menu,
    [
      ["model", "the model"],
      ["local", "particles near each state"],
    ],
    "model",
  );
  return { menu, label: element("label", { title: "Maps from particles take seconds each." }, "maps from ", menu) };
}
