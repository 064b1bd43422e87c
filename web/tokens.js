// How many tokens of CLIP a caption has: counted by the server with CLIP's own vocabulary, and about right until that has come.
import { post } from "./api.js";
import { setState } from "./store.js";

export const TOKENS = 75;   // that a text encoder reads at a time
const WAIT = 250;
const MOST = 500;           // texts of one request
const counts = new Map();
let wanted = new Set();
let timer = 0;

export function tokensOf(caption) {
  if (!caption.trim()) return 0;
  if (counts.has(caption)) return counts.get(caption);
  wanted.add(caption);
  timer ||= setTimeout(ask, WAIT);
  return estimate(caption);
}

async function ask() {
  timer = 0;
  const texts = [...wanted].slice(-MOST);   // what was typed over is not needed any more
  wanted = new Set();
  try {
    const found = (await post("captions/tokens", { texts })).tokens;
    if (counts.size > 20 * MOST) counts.clear();
    texts.forEach((text, i) => counts.set(text, found[i]));
    setState((s) => ({ tokensKnown: (s.tokensKnown ?? 0) + 1 }));
  } catch { /* the estimate stays, and the next look asks again */ }
}

// A long word is several, and every Chinese character is one or two.
function estimate(caption) {
  let count = 0;
  for (const [part] of caption.matchAll(/[\u3000-\u9fff\uac00-\ud7af\uff00-\uffef]|[A-Za-z\u00c0-\u024f\u0370-\u04ff]+|\d|[^\s\w]/gu)) {
    count += part.charCodeAt(0) >= 0x3000 ? 2 : /^\p{L}/u.test(part) ? Math.ceil(part.length / 8) : 1;
  }
  return count;
}
