"""The command line: `python train.py --config my.yaml`, and generate, inspect, export, demo."""
from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

from .cli_bundle import add_commands as add_bundle_commands
from .cli_farm import add_commands as add_farm_commands
from .cli_gallery import add_commands as add_gallery_commands
from .cli_llm import add_generate_options, generate_text, is_language_request, train_language
from .config import SETTINGS, TrainConfig, describe_settings
from .config_files import load_config, read_values
from .llm.config import LanguageConfig
from .llm.config_files import is_language_run, load_language_config
from .distributed import ALONE, Alone, PeerFailed, check_command, check_image_launch, device_for, joined, tell_launcher, told_once
from .memory import FREE_SOME, explained
from .output_files import OutputError
from .process_lock import alone
from .settings import Setting
from .state import find_states, put_states_aside

log = logging.getLogger(__name__)
SAME_PRESS = 2.0
"""A launcher hands Ctrl-C on, so that one press may come twice within so many seconds."""
BROKEN_PIPE = 141
COMMANDS = ("train", "farm", "export-job", "run-bundle", "caption", "check", "ui", "generate", "inspect", "export", "demo", "train-base")
SIDE = Setting("", "int", False, "the base's own", "", minimum=16, maximum=8192, unit="pixels")
DRAWN_WITH = {"seed": SETTINGS["preview_seed"], "steps": Setting("", "int", False, 25, "", minimum=1, maximum=1000), "width": SIDE, "height": SIDE,
              "guidance": replace(SETTINGS["preview_guidance"], optional=False, default="the base's own")}
"""What is allowed for the numbers of `generate`."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 when it did what was asked, 1 after an error of the user's or the system's, which is one sentence.

    Whoever reads what is printed may stop before its end, as `| head` does: nothing is said of that, and a command that it cut short gives 141, as
    a shell tells of a program that ended so.
    """
    try:
        return _command(arguments)
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # the rest goes nowhere, as Python would complain of it when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command(arguments: list[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout.encoding and sys.stdout.encoding.lower().replace("-", "") != "utf8" and hasattr(sys.stdout, "reconfigure"):
        # a Windows console in another code page must not end a run because a file has a Chinese name
        sys.stdout.reconfigure(errors="replace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("diffusers", "transformers", "accelerate", "PIL", "httpx"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if not arguments or arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments.insert(0, "train")
    if arguments[0] == "train-base":
        from .demo.train_base import main as train_base

        return train_base(arguments[1:])
    options = parser().parse_args(arguments)
    try:
        with explained(lambda: FREE_SOME):
            with told_once():
                check_command(arguments[0])
            return options.run(options)
    except (ValueError, OutputError) as error:
        tell_launcher(str(error))
        if not (isinstance(error, PeerFailed) and error.quiet):
            print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"error: the package {error.name or error} is missing; install the command line's packages with "
              "`pip install -e .[standalone]`", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python train.py", description="Train a LoRA from a folder of pictures or texts, and use it.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a LoRA (the default: `python train.py --config my.yaml`)", epilog=_settings_text(),
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    train.add_argument("--config", metavar="FILE", help="settings as YAML, TOML or JSON; keys of lora-scripts and sd-scripts are read too")
    train.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one setting; may be given several times")
    train.add_argument("--dry-run", action="store_true", help="say what would happen, how long it takes and what it needs; train nothing")
    train.add_argument("--resume", action="store_true", help="go on from the newest saved state in output_dir")
    train.set_defaults(run=_train)
    page = commands.add_parser("ui", help="open the page: gallery, training, comparing, without any host")
    page.add_argument("--base", action="append", default=[], help="demo (default), a .safetensors file, a diffusers folder, or a folder with checkpoints; "
                      "may be given several times")
    page.add_argument("--port", type=int, default=7865, help="0 takes any free one (default: 7865)")
    page.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 lets others on the network in, who then see the --gallery-root folders only")
    page.add_argument("--output-dir", type=Path, default=Path("output"), help="folder for LoRAs, jobs and galleries (default: output)")
    page.add_argument("--gallery-root", action="append", type=Path, default=[], help="allow pictures from this folder only; may be given several times")
    page.add_argument("--device", default="auto")
    page.add_argument("--models-dir", type=Path, action="append", help="where captioning models lie and are downloaded to (default: models); may be given several times")
    page.set_defaults(run=_ui)
    draw = commands.add_parser("generate", help="draw pictures, where the prompt may hold <lora:name:weight>; or answer with a language model")
    draw.add_argument("--base", default="demo", help="a .safetensors file, a diffusers folder, or demo (default)")
    draw.add_argument("--prompt", required=True, help='for example "a photo of sks <lora:my_face:0.7>"')
    draw.add_argument("--negative", default="", help="what should not be in the picture")
    draw.add_argument("--lora-dir", action="append", type=Path, help="folder with LoRA files (default: output); may be given several times")
    draw.add_argument("--seed", type=int, default=0)
    draw.add_argument("--steps", type=int, default=25)
    draw.add_argument("--guidance", type=float, default=None, help="how closely to follow the prompt (default: the base's own)")
    draw.add_argument("--width", type=int, default=None)
    draw.add_argument("--height", type=int, default=None)
    draw.add_argument("--device", default="auto")
    draw.add_argument("--out", type=Path, default=Path("output/picture.png"))
    add_generate_options(draw)
    draw.set_defaults(run=_generate)
    inspect = commands.add_parser("inspect", help="say what is in a LoRA file: rank, alpha, layers, base, trigger, training settings")
    inspect.add_argument("file", type=Path)
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(run=_inspect)
    export = commands.add_parser("export", help="write a LoRA file in another form")
    export.add_argument("file", type=Path)
    export.add_argument("--format", choices=("kohya", "peft"), required=True, help="kohya for ComfyUI and A1111, peft for diffusers")
    export.add_argument("--out", type=Path, default=None)
    export.set_defaults(run=_export)
    add_farm_commands(commands)
    add_bundle_commands(commands)
    add_gallery_commands(commands)
    demo = commands.add_parser("demo", help="train on the gallery and the base that come with HotLoRA, and draw a grid")
    demo.add_argument("--out", type=Path, default=Path("output/demo"))
    demo.set_defaults(run=_demo)
    return top


def _settings_text() -> str:
    lines = []
    for kind, title in ((TrainConfig, "settings (in the file, or as --set key=value):"), (LanguageConfig, "\nsettings for language models (task: llm):")):
        lines.append(title)
        lines += [f"  {name}: {sentence} [{allowed}; default {default}]" for name, allowed, default, sentence in describe_settings(kind)]
    return "\n".join(lines)


def read_config(options: argparse.Namespace) -> tuple[TrainConfig | LanguageConfig, list[str]]:
    if options.config is None and not options.set:
        raise ValueError("no settings were given; write `python train.py --config configs/my_lora_config.yaml`, or see --help")
    path, text = (options.config, None) if options.config is not None else ("command-line.yaml", "{}")
    if is_language_run(read_values(path, text), options.set):
        return load_language_config(path, options.set, text)
    return load_config(path, options.set, text)


def _train(options: argparse.Namespace) -> int:
    with told_once():
        config, warnings = read_config(options)
        if isinstance(config, TrainConfig):
            check_image_launch()
    if isinstance(config, LanguageConfig):
        return train_language(config, warnings, options)
    with joined() as ranks:
        if ranks.rank:
            _speak_less(ranks.rank)
        return _train_on_pictures(options, config, warnings, ranks)


def _train_on_pictures(options: argparse.Namespace, config: TrainConfig, warnings: list[str], ranks: Alone) -> int:
    from .hosts.standalone import base_of_run, existing_base, pick_device
    from .listeners import usual_listeners
    from .preflight import preflight
    from .run import make_session, read_material

    for warning in warnings:
        log.warning("warning: %s", warning)
    device = ranks.together(lambda: device_for(config.device, ranks.place))
    ranks.together(lambda: preflight(config, pick_device(device)))
    ranks.together(lambda: existing_base(config.base_model))
    makes_captions = not (options.dry_run or options.resume)
    material = ranks.leaders_first(lambda is_leader: read_material(config, make_captions=makes_captions and is_leader))
    for warning in material.gallery.warnings:
        log.warning("warning: %s", warning)
    backend = ranks.together(lambda: base_of_run(config, device))
    if options.dry_run:
        from .estimate import dry_run

        if ranks.is_writer:
            print(dry_run(material, backend))
        return 0
    log.info("%s", material.gallery.report())
    listeners = usual_listeners(config, warnings + material.gallery.warnings) if ranks.is_writer else []
    session = make_session(material, backend, listeners, ranks=ranks)
    if options.resume:
        for change in ranks.together(session.resume):
            log.warning("warning: unlike the saved run, %s", change)
        log.info("going on from step %d of %d", session.step, session.total_steps)
    outcome = train_until_signal(session, ranks)
    completed = outcome.status == "completed"
    if ranks.is_writer:
        print(outcome.message)
        print(f"try it: {try_command(config, session.name)}" if completed else f"go on: {go_on_command(options)}")
    return 0 if completed else 3


def _speak_less(rank: int) -> None:
    """What all processes say the first one says; memory may run full in any of them."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"[process {rank}] %(message)s"))
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger(f"{__package__}.memory").setLevel(logging.WARNING)


def train_until_signal(session, ranks: Alone = ALONE):
    """Train; the first Ctrl-C (or SIGTERM) stops after the step and saves, the second one ends at once."""
    asked: list[float] = []

    def stop(number, frame) -> None:
        now = time.monotonic()
        if ranks.world > 1 and asked and (number == signal.SIGTERM or now - asked[0] < SAME_PRESS):
            return
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(now)
        if ranks.is_writer:
            print("\nstopping after this step; press Ctrl-C again to end at once", file=sys.stderr)
        session.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with ExitStack() as kept:
            ranks.together(lambda: kept.enter_context(_kept_apart(session, ranks)))
            if ranks.is_writer and not session.step:
                _put_former_aside(session)
            return session.train()
    except (ValueError, OutputError, KeyboardInterrupt):
        raise
    except Exception as error:
        # the log file has the traceback; a person at the prompt gets the sentence
        raise ValueError(f"the training failed: {type(error).__name__}: {error}; the log in {session.folder / 'logs'} has the details") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _put_former_aside(session) -> None:
    """States of an unfinished run of that name lie further on than those of a new one, which would be taken for older and removed."""
    if any(not path.stem.endswith("-000000") for path in find_states(session.folder, session.name)):
        log.warning("warning: an unfinished run of %s was there, and this one begins anew; the states of that one are kept in %s", session.name,
                    put_states_aside(session.folder, session.name))


def _kept_apart(session, ranks: Alone):
    """Two runs that write states of one name into one folder would go on from each other's. The processes of one launch are one run, and the one
    that writes keeps others out."""
    if not ranks.is_writer:
        return nullcontext()
    return alone(session.folder / f".{session.name}.lock", f"another process is training {session.name} in {session.folder.absolute()}; wait for it or stop "
                                                          "it, or set another name or output_dir")


def try_command(config: TrainConfig, name: str) -> str:
    subject = f"a photo of {config.trigger}" if config.trigger else "a photo"
    return (f'python train.py generate --base "{config.base_model}" --lora-dir "{config.lora_dir or config.output_dir}" '
            f'--prompt "{subject} <lora:{name}:0.8>" --seed 1 --out picture.png')


def go_on_command(options: argparse.Namespace) -> str:
    """The command that was given, with --resume."""
    given = [*(["--config", str(options.config)] if options.config is not None else []), *(part for one in options.set for part in ("--set", one)), "--resume"]
    return "python train.py " + (subprocess.list2cmdline(given) if os.name == "nt" else shlex.join(given))


def _ui(options: argparse.Namespace) -> int:
    from .hosts.standalone_host import serve

    serve(options.base, options.listen, options.port, options.output_dir, options.device, options.gallery_root, options.models_dir)
    return 0


def _generate(options: argparse.Namespace) -> int:
    for name, definition in DRAWN_WITH.items():
        if getattr(options, name) is not None:
            definition.convert(getattr(options, name), called=f"--{name}")
    if is_language_request(options):
        return generate_text(options)
    from .backend import SampleRequest
    from .generate import generate
    from .hosts.standalone import load_base
    from .live import Registry, parse_prompt
    from .pixels import write_png

    parse_prompt(options.prompt)
    registry = Registry(options.lora_dir or [Path("output")])
    if options.out.suffix.lower() != ".png":
        raise ValueError(f"--out is {options.out}; the picture is written as PNG, so give a name that ends in .png")
    request = SampleRequest(prompts=("",), negative=options.negative, seed=options.seed, steps=options.steps, guidance=options.guidance,
                            width=options.width, height=options.height)
    for tag in parse_prompt(options.prompt)[1]:
        registry.find(tag.name)
    backend = load_base(options.base, options.device)
    write_png(options.out, generate(backend, options.prompt, registry, request)[0])
    print(options.out)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from .inspect_file import inspect_file

    print(inspect_file(options.file, as_json=options.json))
    return 0


def _export(options: argparse.Namespace) -> int:
    from .peft_format import export_file

    print(export_file(options.file, options.format, options.out))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo.run_demo import run_demo
    from .run import check_writable

    if options.out.is_file():
        raise ValueError(f"--out is {options.out}, which is a file; give a folder for the LoRA and the pictures of the demo")
    check_writable("--out", options.out)
    print(json.dumps(run_demo(options.out), indent=2))
    return 0
