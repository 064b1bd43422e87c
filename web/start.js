// Shows the page in index.html. A host that has the page in its own document calls `mount` itself.
import { mount } from "./app.js";

mount(document.getElementById("hotlora"));
