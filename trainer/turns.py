"""A borrowed base is handed over, between two steps, to whoever waits for it."""
from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Callable, ContextManager, Iterator

from .backend import Backend


class Turn:
    """Holds the base for as long as nobody else wants it.

    `borrow` makes the context in which the work is done; it is left and entered again each time that the base is handed over, so
    it must put everything back on exit. Raises what `borrow` raises, `BaseChanged` among it; the base is then not held.
    """

    def __init__(self, backend: Backend, borrow: Callable[[], ContextManager]) -> None:
        self.backend, self.borrow, self._held = backend, borrow, ExitStack()

    def __enter__(self) -> Turn:
        self._held.enter_context(self.borrow())
        return self

    def __exit__(self, *error) -> bool | None:
        return self._held.__exit__(*error)

    def give_way(self) -> None:
        """Let the host do what waits for it, and go on after it."""
        if self.backend.wanted():
            with self.left():
                pass

    @contextmanager
    def left(self) -> Iterator[None]:
        """The base is the host's inside; it is taken again on exit, also after an error, so that one way of leaving is enough."""
        self._held.close()
        try:
            yield
        finally:
            self._held.enter_context(self.borrow())
