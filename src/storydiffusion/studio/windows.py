"""Which window of the browser may change which project: one at a time.

A window names itself and renews its claim while it is open; a claim that is not renewed ends, as that of a closed one.
"""

import threading
import time
from collections.abc import Callable

from storydiffusion.errors import UserError

SECONDS = 20.0  # after which a claim ends
SECONDS_TO_RELOAD = 5.0


class Windows:
    """The claims of windows on projects.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._claims: dict[str, tuple[str, float]] = {}  # project → window and the time of its latest claim

    def claim(self, project: str, window: str) -> None:
        """Take or renew the claim of a window, and end its claims on other projects.

        Raises:
            UserError: another window has the project, or `window` is '', of a page that is still loading.
        """
        if not window:
            raise UserError("the page is still loading: try again in a moment")
        with self._lock:
            now = self._clock()
            owner, since = self._claims.get(project, (window, now))
            if owner != window and now - since < SECONDS:
                raise UserError(
                    f"{project} is open in another window, which may change it: close that one, and open the project "
                    f"here again after {SECONDS:.0f} seconds"
                )
            self._claims = {name: each for name, each in self._claims.items() if each[0] != window}
            self._claims[project] = (window, now)

    def release(self, window: str) -> None:
        """Let the claims of a window end soon, unless it renews them, as a page does that is loaded again."""
        soon = self._clock() - SECONDS + SECONDS_TO_RELOAD
        with self._lock:
            self._claims = {
                name: (owner, min(since, soon) if owner == window else since)
                for name, (owner, since) in self._claims.items()
            }
