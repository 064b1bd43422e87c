"""`python train.py export-job` and `run-bundle`: a job goes to another machine, and its LoRA comes back."""
from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

log = logging.getLogger(__name__)


def add_commands(commands) -> None:
    export = commands.add_parser("export-job", help="put a job into one file that another machine can run, as Export job does on the page")
    export.add_argument("--config", metavar="FILE", required=True, help="settings as for training")
    export.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one setting; may be given several times")
    export.add_argument("--to", type=Path, help="the bundle to write (default: NAME.zip)")
    export.set_defaults(run=_export_job)
    run = commands.add_parser("run-bundle", help="train a job that was exported on another machine; the same command goes on after a stop or a crash")
    run.add_argument("file", type=Path, help="the bundle, a .zip file")
    run.add_argument("--base", help="the base model that the job was made for: a .safetensors file, a diffusers folder, or demo (default: one of its name "
                     "in this folder, the bundle's, or their models/ and checkpoints/)")
    run.add_argument("--any-base", action="store_true", help="train on --base even if it is another one than the job was made for")
    run.add_argument("--out", type=Path, default=Path("output"), help="folder for the LoRA, the result to take back, and everything else (default: output)")
    run.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one setting; may be given several times")
    run.add_argument("--dry-run", action="store_true", help="say what would happen, how long it takes and what it needs; train nothing")
    run.set_defaults(run=_run_bundle)


def _export_job(options: argparse.Namespace) -> int:
    from .bundle import export_job
    from .config_files import load_config
    from .hosts.base_files import facts_of_base
    from .run import read_material

    config, warnings = load_config(options.config, options.set)
    base = facts_of_base(config.base_model)
    material = read_material(config, make_captions=False)
    done = export_job(options.to or Path(f"{material.name}.zip"), material, base)
    for warning in warnings + done.warnings:
        log.warning("warning: %s", warning)
    print(f"{done.path} ({max(0.1, done.bytes / 1e6):.1f} MB): {done.pictures} pictures; the base is not in it but named: {base}")
    print(f'on the other machine: python train.py run-bundle "{done.path.name}"' + ("" if base.name == "demo" else f" --base path/to/{base.name}.safetensors"))
    return 0


def _run_bundle(options: argparse.Namespace) -> int:
    from .bundle_read import read_bundle
    from .bundle_run import choose_base, prepare, write_result
    from .cli import train_until_signal, try_command
    from .hosts.standalone import base_of_run, pick_device
    from .listeners import usual_listeners
    from .preflight import preflight
    from .run import make_session

    bundle = read_bundle(options.file)
    base = choose_base(bundle, options.base, options.any_base)
    material, warnings = prepare(bundle, base, options.out, options.set)
    for warning in warnings:
        log.warning("warning: %s", warning)
    preflight(material.config, pick_device(material.config.device))
    backend = base_of_run(material.config)
    if options.dry_run:
        from .estimate import dry_run

        print(dry_run(material, backend))
        return 0
    log.info("%s", material.gallery.report())
    session = make_session(material, backend, usual_listeners(material.config, warnings))
    if session.resumable():
        session.resume()
        log.info("going on from step %d of %d", session.step, session.total_steps)
    outcome = train_until_signal(session)
    print(outcome.message)
    if outcome.status != "completed":
        print(f"go on: python train.py {' '.join(sys.argv[1:]) or f'run-bundle {options.file}'}")
        return 3
    result = write_result(session, outcome, bundle)
    print(f"take back: {result.path} ({max(0.1, result.bytes / 1e6):.1f} MB), with Import result on HotLoRA's page")
    print(f"try it: {try_command(material.config, session.name)}")
    return 0
