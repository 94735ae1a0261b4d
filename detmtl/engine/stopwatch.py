"""Where the time of a training step goes, without waiting for the device."""

import time

import torch


class Stopwatch:
    """Splits time into named parts.

    On a GPU the marks are events in its own stream: a part is the time that the device spent, or
    stood idle, between two marks. Reading waits for the last mark, so read only where the program
    has waited anyway.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._parts: list[tuple[str, object, object]] = []
        self._last = self._now()

    def lap(self, part: str) -> None:
        """Says that everything since the last mark was `part`."""
        now = self._now()
        self._parts.append((part, self._last, now))
        self._last = now

    def restart(self) -> None:
        """Forgets the time since the last mark."""
        self._last = self._now()

    def read(self) -> dict[str, float]:
        """Returns seconds by part since the last reading, and starts anew."""
        if self._cuda:
            self._last.synchronize()  # type: ignore[attr-defined]
        sums: dict[str, float] = {}
        for part, start, end in self._parts:
            sums[part] = sums.get(part, 0.0) + self._seconds(start, end)
        self._parts.clear()
        return sums

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, start, end) -> float:
        return start.elapsed_time(end) / 1000 if self._cuda else end - start
