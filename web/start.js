// Shows the page in index.html. Everything is asked for at once: what the server knows comes while the page's own modules still do.
// A host that has the page in its own document imports `mount` itself.
const api = import.meta.url.replace(/\/web\/.*$/, "/api/");
const ask = (path) => fetch(`${api}${path}`, { credentials: "same-origin", cache: "no-store" }).then((answer) => (answer.ok ? answer.json() : null), () => null);
const early = { status: ask("status"), jobs: ask("jobs") };

// the newest run is on the first screen too, where there is one
early.jobs.then((found) => {
  if (!found?.jobs.length) return;
  for (const name of ["views/run.js", "views/loss.js", "views/previews.js", "views/picture_grid.js", "notify.js", "try_form.js", "vendor/uplot.mjs"]) {
    document.head.append(Object.assign(document.createElement("link"), { rel: "modulepreload", href: new URL(name, import.meta.url).href }));
  }
});

import("./app.js").then(({ mount }) => mount(document.getElementById("hotlora"), early));
