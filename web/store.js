// One state for the page: plain values, replaced and never changed in place, so that a view can compare them.
import { h } from "./vendor/preact.mjs";
import { useEffect, useState } from "./vendor/hooks.mjs";
import htm from "./vendor/htm.mjs";

export const html = htm.bind(h);

let state = {
  connection: "connecting",   // connecting, open, lost
  status: null,               // GET status
  settings: [],               // GET settings
  galleries: [],              // GET galleries
  galleryChanges: 0,          // how many changes of pictures and captions the server has told of
  jobs: null,                 // short states, newest first; null until they are known
  queue: [],
  waiting: false,             // whether the queue waits for the user after a restart
  details: {},                // whole jobs by id
  loras: null,
  sending: null,              // how far an upload is: {done, total}
  uploadProblem: null,        // {failed: [{name, error}]}, {noPictures}, or an error
  uploadElsewhere: null,      // that files did not go into the folder that was chosen: {folder: where they went, files, open: the one that was chosen}
  trainStage: null,           // of a Train that was pressed: "waits" for pictures on their way, or "starts"
  trainError: null,           // what it failed with: {error, form as it was}
  logs: {},                   // lines by job id
  toasts: [],
};
const listeners = new Set();
let told = true;

export const getState = () => state;

export function setState(patch) {
  state = { ...state, ...(typeof patch === "function" ? patch(state) : patch) };
  if (told) {
    told = false;
    queueMicrotask(() => {
      told = true;
      for (const listener of [...listeners]) listener();
    });
  }
}

export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

// What `pick` takes from the state; the view is drawn again when that is another value.
export function useStore(pick) {
  const [, redraw] = useState(0);
  const value = pick(state);
  useEffect(() => {
    let last = value;
    const look = () => {
      const now = pick(state);
      if (now !== last) {
        last = now;
        redraw((n) => n + 1);
      }
    };
    look();
    return subscribe(look);
  });
  return value;
}

let toastId = 0;

export function toast(text, action) {
  const one = { id: ++toastId, text, action };
  setState((s) => ({ toasts: [...s.toasts.slice(-2), one] }));
  setTimeout(() => dropToast(one.id), action ? 12000 : 5000);
}

export function dropToast(id) {
  setState((s) => ({ toasts: s.toasts.filter((one) => one.id !== id) }));
}
