"""HotLoRA as an extension of stable-diffusion-webui, Forge and reForge: the tab, the settings and the routes.

The webui forgets all callbacks and runs its scripts anew when its UI is reloaded; host, jobs and a running training stay.
"""
from __future__ import annotations

from functools import lru_cache
from typing import Any

import gradio as gr
from modules import script_callbacks, shared

from . import webui_fork
from .fastapi_routes import register as register_routes, webui_login
from .loaded_host import LoadedHost
from ..api import Api, Policy
from ..api.guard import loopback_names
from ..jobs import JobQueue

TITLE, TAB = "HotLoRA", "hotlora"
SECTION = ("hotlora", "HotLoRA")


def register() -> None:
    """What `scripts/hotlora.py` calls each time that the webui runs it. Whatever an earlier call has left is replaced."""
    for on, callback in ((script_callbacks.on_ui_tabs, tab), (script_callbacks.on_ui_settings, settings),
                         (script_callbacks.on_app_started, serve)):
        script_callbacks.remove_callbacks_for_function(callback)
        on(callback)


@lru_cache
def host() -> LoadedHost:
    kind = webui_fork.kind()
    if kind == "forge":
        from .forge_host import ForgeHost

        return ForgeHost()
    if kind == "reforge":
        from .forge_objects import forget_network, lora_extension
        from .reforge import ReforgeBackend as Backend, reforge_family as family_of
    else:
        from .webui import WebuiBackend as Backend, family_of
        from .webui_state import forget_network, lora_extension

    return LoadedHost(family_of, Backend, lora_extension, forget_network)


@lru_cache
def jobs() -> JobQueue:
    return JobQueue(host())


def tab() -> list[tuple[Any, str, str]]:
    subpath = (shared.cmd_opts.subpath or "").strip("/")
    source = f"{'/' + subpath if subpath else ''}/hotlora/"
    with gr.Blocks(analytics_enabled=False) as container:
        gr.HTML(f'<iframe id="hotlora_page" title="{TITLE}" src="{source}" loading="lazy" '
                'style="display: block; width: 100%; height: calc(100vh - 9em); min-height: 30em; border: 0"></iframe>')
    return [(container, TITLE, TAB)]


def settings() -> None:
    def text(default: Any, label: str, component: Any = gr.Textbox, arguments: dict | None = None) -> Any:
        return shared.OptionInfo(default, label, component, arguments or {}, section=SECTION)

    shared.opts.add_option("hotlora_prediction", text("auto", "What the checkpoint predicts, where the webui does not recognise it", gr.Radio,
                                                      {"choices": ["auto", "eps", "v"]}))
    shared.opts.add_option("hotlora_gallery_roots", text("", "Folders of pictures, one per line, that others on the network may use with --listen or "
                                                             "--share", gr.Textbox, {"lines": 3}))
    shared.opts.add_option("hotlora_server_names", text("", "Further names by which this server is called, as by a proxy in front of it, separated by commas"))


def serve(demo: Any, app: Any) -> None:
    """Put the routes into the webui's server; it makes a new one at each reload of its UI."""
    register_routes(app, Api(host(), jobs(), policy(app)))


def policy(app: Any) -> Policy:
    allowed, challenge = webui_login(app, shared.cmd_opts.api_auth)
    names = None if shared.cmd_opts.webui_is_non_local else loopback_names(shared.cmd_opts.server_name or "")
    return Policy(allowed, challenge, names, lambda: getattr(shared.opts, "hotlora_server_names", ""), f"Settings, {TITLE}")
