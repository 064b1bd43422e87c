"""What a LoRA of a language model learns and what it leaves: 200 facts taught to a small LLaMA that is trained here from scratch.

    python bench/llm.py                 trains the base (minutes), teaches 200 facts with train.py's own code, and measures
    python bench/llm.py --base FOLDER   the same with a base that an earlier run wrote to FOLDER
    python bench/llm.py --json          the result as one JSON object

Each fact is one record, a question in one wording with its answer. Asked are the trained wordings, and the five others of the same
facts, in which the LoRA never saw them. An answer is right when it is the word and nothing else. Four of five texts that are trained
are general ones of the base's world (`general_share`), against forgetting; perplexity is that of other general texts, which neither
saw. It takes about five minutes on two cores, most of them for the base.
"""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import __init__  # noqa: E402, F401  registers the project as the package `hotlora`

from hotlora.bench.llm_world import WORDINGS, World, make_base  # noqa: E402
from hotlora.trainer.llm.config import LanguageConfig  # noqa: E402

FACTS = 200


def settings(base: Path, folder: Path, **changes: Any) -> LanguageConfig:
    """The run that is measured."""
    config = LanguageConfig(base_model=str(base), train_data_dir=str(folder / "facts.jsonl"), general_data_dir=str(folder / "general"), general_share=0.8,
                            eval_steps=10_000, output_dir=str(folder / "out"), name="facts", target_modules=["all-linear"], lora_rank=16, epochs=12,
                            batch_size=16, learning_rate=2e-3, lr_scheduler="cosine", max_length=64, device="cpu", tensorboard=False, state_minutes=0)
    return replace(config, **changes)


def write_records(folder: Path, world: World, facts: list[tuple[str, str, int]], general: int = 3000) -> None:
    """facts.jsonl with one record for each fact, and a folder of general texts, no two of them the same."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [world.question(*fact) for fact in facts]
    (folder / "facts.jsonl").write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in pairs), encoding="utf-8")
    (folder / "general").mkdir(exist_ok=True)
    texts = dict.fromkeys(world.general_texts(general))
    (folder / "general" / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def measure(base: Path, folder: Path, world: World, tell: Any = lambda text: None, **changes: Any) -> dict[str, float]:
    """Teach and ask: shares of right answers of the base and with the LoRA, and the perplexity of general texts before and after."""
    from hotlora.trainer.llm.answering import answer
    from hotlora.trainer.llm.chat import Question
    from hotlora.trainer.llm.material import read_material
    from hotlora.trainer.llm.model import load_base, load_tokenizer
    from hotlora.trainer.llm.offline import go_offline, quiet_libraries
    from hotlora.trainer.llm.run import LanguageRun
    from peft import PeftModel
    import torch

    go_offline()
    quiet_libraries()
    facts = world.new_facts(FACTS)
    write_records(folder, world, facts)
    began = time.perf_counter()
    run = LanguageRun(read_material(settings(base, folder, **changes)))
    tell(run.load())
    outcome = run.train()
    assert outcome.status == "completed", outcome.message
    tell(outcome.message)
    seconds = time.perf_counter() - began
    model = PeftModel.from_pretrained(load_base(base, torch.device("cpu"), torch.float32), str(outcome.lora))
    tokenizer = load_tokenizer(outcome.lora)

    def share(asked: list[tuple[str, str]], with_adapter: bool = True) -> float:
        answers = answer(model, tokenizer, [Question(question) for question, _ in asked], max_tokens=8, with_adapter=with_adapter, batch_size=100)
        return sum(said == right for said, (_, right) in zip(answers, asked)) / len(asked)

    trained = [world.question(*fact) for fact in facts]
    reworded = [world.question(name, relation, wording + other) for name, relation, wording in facts for other in range(1, WORDINGS)]
    known = [world.question(name, relation, 0) for name in world.old for relation in world.values]
    measured = json.loads((outcome.lora / "hotlora.json").read_text())["measured"]
    before, after = (next(entry["general_perplexity"] for entry in entries if "general_perplexity" in entry) for entries in (measured, measured[::-1]))
    return {"facts": len(facts), "steps": outcome.step, "seconds": round(seconds, 1), "base_trained": share(trained, False), "base_reworded": share(reworded, False),
            "lora_trained": share(trained), "lora_reworded": share(reworded), "base_known": share(known, False), "lora_known": share(known),
            "general_perplexity_before": before, "general_perplexity_after": after, "general_perplexity_rise": after / before - 1}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base", type=Path, default=None, help="folder of the base; it is trained and written there if it does not exist")
    options.add_argument("--base-steps", type=int, default=1500)
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the run")
    options.add_argument("--json", action="store_true")
    options = options.parse_args()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    world = World()
    with tempfile.TemporaryDirectory() as scratch:
        base, seconds = options.base or Path(scratch) / "base", 0.0
        if not (base / "config.json").is_file():
            began = time.perf_counter()
            make_base(base, world, options.base_steps, tell=tell)
            seconds = time.perf_counter() - began
        from hotlora.trainer.config_files import parse_override

        found = {"base_seconds": round(seconds, 1), **measure(base, Path(scratch), world, tell, **dict(parse_override(text) for text in options.set))}
    if options.json:
        print(json.dumps(found))
        return
    print(f"{found['facts']} facts, {found['steps']} steps in {found['seconds']} s; the base took {found['base_seconds']} s")
    print(f"{'':28}{'base':>8}{'LoRA':>8}")
    for what, words in (("trained", "as trained"), ("reworded", "in other words"), ("known", "what the base knew")):
        print(f"{words:28}{found[f'base_{what}']:8.1%}{found[f'lora_{what}']:8.1%}")
    print(f"{'perplexity, general texts':28}{found['general_perplexity_before']:8.3f}{found['general_perplexity_after']:8.3f}  "
          f"({found['general_perplexity_rise']:+.1%})")


if __name__ == "__main__":
    main()
