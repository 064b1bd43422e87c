// Calls to the server. A failure is an ApiError with one sentence for the user, and folded details where there are some.
import { t } from "./i18n.js";

// the page's files lie under web/, some servers put their version after it
export const BASE = import.meta.url.replace(/\/web\/.*$/, "/api/");

export class ApiError extends Error {
  constructor(message, details = "", status = 0) {
    super(message);
    this.details = details;
    this.status = status;
  }
}

export function address(path, query = {}) {
  const url = new URL(path, BASE);
  for (const [key, value] of Object.entries(query)) {
    if (value !== undefined && value !== null) url.searchParams.set(key, value);
  }
  return url.href;
}

async function call(method, path, query, options = {}) {
  let answer;
  try {
    answer = await fetch(address(path, query), { method, credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(t("error.offline"), String(error));
  }
  const text = await answer.text();
  let data = null;
  try {
    data = text ? JSON.parse(text) : null;
  } catch {
    throw new ApiError(t("error.notJson", { status: answer.status }), text.slice(0, 2000), answer.status);
  }
  if (!answer.ok) throw new ApiError(data?.error ?? data?.detail ?? t("error.notJson", { status: answer.status }), data?.details, answer.status);
  const last = answer.headers.get("hotlora-last-event");
  if (last !== null && typeof data === "object" && data !== null) lastEvents.set(data, Number(last));
  return data;
}

const lastEvents = new WeakMap();

// The newest event that an answer knows of for certain. What was told by an event is as new as can be.
export const lastEventOf = (answer) => lastEvents.get(answer) ?? Infinity;

export const get = (path, query, options) => call("GET", path, query, options);

export function post(path, body = {}, options = {}) {
  return call("POST", path, {}, { body: JSON.stringify(body), ...options, headers: { "Content-Type": "application/json" } });
}

export function upload(folder, file, name, apart) {
  return call("POST", "gallery/upload", { folder, file: name, apart }, { body: file, headers: { "Content-Type": "application/octet-stream" } });
}

export const importLora = (file) => call("POST", "loras/import", { file: file.name }, { body: file, headers: { "Content-Type": "application/octet-stream" } });

export const jobPath = (id, rest = "") => `jobs/${encodeURIComponent(id)}${rest}`;
export const previewUrl = (id, file) => address(jobPath(id, `/previews/${encodeURIComponent(file)}`));
export const pictureUrl = (folder, file, size, version) => address("gallery/picture", { folder, file, size, v: version });
// An address that the server gave, also where the host lies below a path of its own.
export const fromServer = (path) => address(path.split("/hotlora/api/").at(-1));
