// Shows the page in index.html. Everything is asked for at once: what the server knows comes while the page's own modules still do.
// A host that has the page in its own document imports `mount` itself.
const api = import.meta.url.replace(/\/web\/.*$/, "/api/");
const ask = (path) => fetch(`${api}${path}`, { credentials: "same-origin", cache: "no-store" }).then((answer) => (answer.ok ? answer.json() : null), () => null);
const early = { status: ask("status"), jobs: ask("jobs") };

import("./app.js").then(({ mount }) => mount(document.getElementById("hotlora"), early));
