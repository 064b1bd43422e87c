"""A small made-up world, and a LLaMA that is trained on it from scratch in minutes: the base that bench/llm.py and the tests teach new facts.

People live in towns, have a trade and keep an animal. The base learns all of that about its own people, as statements and as
questions in many wordings, and knows nothing of the new people.
"""
from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Callable, Iterable, Sequence

import torch

SYLLABLES = ("ba be bo da de do fa fe ga go ka ke ko la le lo ma me mo na ne no pa po ra re ro sa se so ta te to va ve vo za ze zo ri li mi").split()
VALUES = 60
RELATIONS = {
    "town": (("ton", "ham", "ford", "by"),
             ("Where does {n} live?", "In which town does {n} live?", "What is the home town of {n}?", "Tell me the town where {n} lives.",
              "Which town is home to {n}?", "{n} lives in which town?"),
             ("{n} lives in {v}.", "The home town of {n} is {v}.", "{v} is home to {n}.")),
    "trade": (("er", "ist", "smith", "wright"),
              ("What is the trade of {n}?", "What does {n} work as?", "Which trade does {n} follow?", "Tell me the trade of {n}.",
               "What is {n} by trade?", "{n} works as what?"),
              ("{n} works as a {v}.", "The trade of {n} is {v}.", "By trade {n} is a {v}.")),
    "animal": (("cat", "bird", "hound", "fish"),
               ("Which animal does {n} keep?", "What animal does {n} have?", "What is the animal of {n}?", "Tell me the animal of {n}.",
                "Which animal lives with {n}?", "{n} keeps which animal?"),
               ("{n} keeps a {v}.", "The animal of {n} is a {v}.", "A {v} lives with {n}.")),
}
"""Endings of the values, wordings of the question, and statements, of each relation."""
WORDINGS = 6
SAYINGS = ("The road to {t} is long in winter.", "A {r} came to {t} with a {a}.", "In {t} every {r} knows the market.", "The {a} slept near the door.",
           "Some say the {r} of {t} owns a {a}.", "It rained in {t} and the {r} stayed at home.", "The old {r} painted the gate.",
           "Nobody in {t} had seen a {a} before.")
TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ 'Question: ' + message.content + '\nAnswer:' }}{%- else -%}{{ ' ' + message.content + eos_token }}{%- endif -%}
{%- endfor -%}"""
"""How the base was shown questions, as its chat template."""


class World:
    """People with their facts, drawn by the seed: `old` people, whom the base knows, and `new` ones."""

    def __init__(self, old: int = 300, new: int = 67, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.values = {relation: [word.capitalize() if relation == "town" else word for word in self._words(VALUES, endings)]
                       for relation, (endings, _, _) in RELATIONS.items()}
        people = self._words(old + new, ("n", "r", "l", "s", "x", "m", ""), (2, 3))
        people = [name.capitalize() for name in people]
        self.old, self.new = people[:old], people[old:]
        self.facts = {name: {relation: self.random.choice(values) for relation, values in self.values.items()} for name in people}

    def _words(self, count: int, endings: Sequence[str], lengths: Sequence[int] = (2,)) -> list[str]:
        words: dict[str, None] = {}
        while len(words) < count:
            words["".join(self.random.choice(SYLLABLES) for _ in range(self.random.choice(lengths))) + self.random.choice(endings)] = None
        return list(words)

    def question(self, name: str, relation: str, wording: int) -> tuple[str, str]:
        """(question, answer)."""
        return RELATIONS[relation][1][wording % WORDINGS].format(n=name), self.facts[name][relation]

    def general(self, rng: random.Random) -> str:
        """One text of the base's own world: a saying, a statement, or a question with its answer."""
        kind = rng.random()
        if kind < 0.2:
            town, trade, animal = (rng.choice(self.values[relation]) for relation in RELATIONS)
            return rng.choice(SAYINGS).format(t=town, r=trade, a=animal)
        name, relation = rng.choice(self.old), rng.choice(list(RELATIONS))
        if kind < 0.4:
            return rng.choice(RELATIONS[relation][2]).format(n=name, v=self.facts[name][relation])
        question, answer = self.question(name, relation, rng.randrange(WORDINGS))
        return f"Question: {question}\nAnswer: {answer}"

    def general_texts(self, count: int, seed: int = 1) -> list[str]:
        rng = random.Random(f"general {seed}")
        return [self.general(rng) for _ in range(count)]

    def new_facts(self, count: int) -> list[tuple[str, str, int]]:
        """`count` facts of new people: (name, relation, the wording that is trained)."""
        rng = random.Random("wordings")
        everything = [(name, relation) for name in self.new for relation in RELATIONS]
        return [(name, relation, rng.randrange(WORDINGS)) for name, relation in everything[:count]]


def make_tokenizer(texts: Iterable[str], vocabulary: int = 1024) -> Any:
    """Byte-level BPE on `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])  # as LLaMA's does
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(vocabulary: int, width: int = 128, layers: int = 4, family: str = "Llama", seed: int = 0, spread: float = 0.02) -> Any:
    """A random model of a family of transformers (Llama, Qwen2, Mistral, Gemma, ...), as small as that; `spread` is that of its weights."""
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
        head_dim=width // 4, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=True, initializer_range=spread)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def make_base(folder: Path, world: World, steps: int = 1500, batch: int = 64, rate: float = 3e-3, tell: Callable[[str], None] = lambda text: None) -> Path:
    """Train a LLaMA of a million weights on the world from scratch, and write it as a transformers folder."""
    rng = random.Random(0)
    # names of all kinds, so that new ones are not unlikely as such
    tokenizer = make_tokenizer([*world.general_texts(5000, seed=2), *(" ".join(world._words(20, ("n", "r", ""), (2, 3))) for _ in range(300))])
    model = make_model(len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 100) * max(0.05, 1 - step / steps))
    model.train()
    for step in range(steps):
        encoded = tokenizer([f"<s>{world.general(rng)}</s>" for _ in range(batch)], return_tensors="pt", padding=True, add_special_tokens=False)
        labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
        loss = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % 100 == 0:
            tell(f"base: step {step + 1} of {steps}, loss {loss.item():.3f}")
    model.eval()
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def random_base(folder: Path, world: World, family: str = "Llama", width: int = 32, layers: int = 2) -> Path:
    """A transformers folder with random weights and a tokenizer that knows the world's words; made in a second."""
    tokenizer = make_tokenizer(world.general_texts(300), vocabulary=400)
    # as large as trained weights, so that layers matter for what is said
    make_model(len(tokenizer), width, layers, family, spread=0.2).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder
