// Requests to the server.

import { unpack } from "./answer.js";

export const TOKEN = new URLSearchParams(location.search).get("token");

// Ask the server for an action; returns its values with its arrays among them.
export async function ask(action, request = {}, signal = undefined) {
  let response;
  try {
    response = await fetch(`/${action}`, {
      method: "POST",
      body: JSON.stringify(request),
      headers: { "X-Token": TOKEN },
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("no answer from dynamight explore; check that it is still running and that the SSH tunnel is open");
  }
  if (!response.ok) throw new Error((await response.json()).error);
  return unpack(await response.arrayBuffer());
}

const waiting = {};
// Ask, and cancel an earlier request of the same action.
export function askLatest(action, request) {
  waiting[action]?.abort();
  waiting[action] = new AbortController();
  return ask(action, request, waiting[action].signal);
}
