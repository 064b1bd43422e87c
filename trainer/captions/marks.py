"""Which captions a machine wrote: a small hidden file in the gallery remembers what was written, so that a caption that a person has changed
since counts as the person's, and what a machine wrote can be undone. It travels with the folder."""
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ..output_files import write_atomically

FILE = ".hotlora-captions.json"


class Marks:
    """`captions`: picture's name in the gallery -> what was written; `made`: caption files that did not exist before."""

    def __init__(self, root: Path) -> None:
        self.path = root / FILE
        self.captions: dict[str, dict[str, Any]] = {}
        self.made: list[str] = []
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            self.captions = {name: entry for name, entry in stored["captions"].items() if isinstance(entry.get("text"), str)}
            self.made = [name for name in stored["made"] if isinstance(name, str)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # absent or damaged: every caption counts as a person's, which is the safe side
            self.captions, self.made = {}, []

    def note(self, captions: dict[str, str], model: str, purpose: str, trigger: str = "") -> None:
        for name, text in captions.items():
            self.captions[name] = {"text": text, "model": model, "purpose": purpose, "time": round(time.time())}
            if trigger and f"{text}, ".startswith(f"{trigger}, "):
                self.captions[name]["trigger"] = trigger

    def is_automatic(self, name: str, caption: str) -> bool:
        """Whether the caption is still what the machine wrote."""
        return bool(caption) and name in self.captions and self.captions[name]["text"] == caption

    def trigger_of(self, name: str, caption: str) -> str:
        """The trigger word that the machine put first; empty where it has put none there, and for a caption that a person has changed since."""
        trigger = self.captions[name].get("trigger") if self.is_automatic(name, caption) else ""
        return trigger if isinstance(trigger, str) else ""

    def told(self, name: str, caption: str) -> dict[str, Any]:
        """For a page: whether the caption is a machine's, and the trigger word in it."""
        trigger = self.trigger_of(name, caption)
        return {"automatic": self.is_automatic(name, caption), **({"trigger": trigger} if trigger else {})}

    def save(self) -> None:
        if not self.captions and not self.made:
            self.path.unlink(missing_ok=True)
            return
        stored = {"about": "captions that HotLoRA made; one that was edited since counts as a person's", "captions": self.captions, "made": self.made}
        write_atomically(self.path, json.dumps(stored, ensure_ascii=False, indent=1).encode("utf-8", "replace"))
