"""Calls that a process of its own makes, one at a time, while this one goes on.

The process is started afresh and never forked: a fork of a process that uses a GPU does not work, and
one that has threads may hang. It ends with this one, however that ends: its standard input closes
then. Nothing but the standard library is imported here, so that it listens before it has loaded
anything.
"""

import os
import pickle
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

_LENGTH = struct.Struct("<Q")


class ProcessEnded(RuntimeError):
    """The process is gone without an answer."""


class Background:
    """A process that makes calls; it starts with the first one. Use as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._answer: Future[tuple[Any, BaseException | None]] | None = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process, whatever it is doing."""
        if self._process is None or self._thread is None:
            return
        self._process.kill()
        self._process.wait()
        self._thread.shutdown()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # something was still to be written
                pipe.close()
        self._process = self._thread = self._answer = None

    def start(self, job: bytes) -> None:
        """Starts a call; the result of the one before must have been taken.

        Args:
            job: of `packed`.
        """
        assert self._answer is None, "one call at a time"
        if self._process is not None and self._process.poll() is not None:
            self.__exit__()  # it was ended while it had nothing to do
        if self._process is None or self._thread is None:
            self._process, self._thread = _started(), ThreadPoolExecutor(1)
        self._answer = self._thread.submit(_exchange, self._process, job)

    def done(self) -> bool:
        """Returns whether `result` would not wait."""
        return self._answer is not None and self._answer.done()

    def result(self) -> Any:
        """Waits, and returns what the call returned or raises what it raised, with a note of where.

        Raises:
            ProcessEnded: nobody is there to answer.
        """
        assert self._answer is not None
        answer, self._answer = self._answer, None
        value, error = answer.result()
        if error is not None:
            raise error
        return value


def packed(function: Callable[..., Any], *arguments: Any) -> bytes:
    """Returns a call as bytes, for `Background.start`.

    Raises:
        TypeError: something in it cannot be sent to another process; says why.
    """
    try:
        job = pickle.dumps((function, arguments), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickle raises many kinds
        raise TypeError(str(error)) from error
    if b"__main__" in job:
        raise TypeError("it has a class or a function of the script that was started")
    return job


def portable(error: BaseException) -> BaseException:
    """Returns the error itself, or where it cannot be sent to another process, one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickle raises many kinds, and so may the error's constructor
        same = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            same.add_note(note)
        return same
    return error


def serve() -> None:
    """Makes the calls that come in on standard input until it closes; the process runs this.

    Whatever they print goes to standard error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    jobs: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        answer = _made(jobs.get())
        with suppress(BrokenPipeError):  # then `_listen` ends this
            _write(answers, answer)


def _listen(jobs: "SimpleQueue[bytes]") -> None:
    """Takes in calls; ends this process at once, in the middle of a call too, when nobody is left to call."""
    while (job := _read(sys.stdin.buffer)) is not None:
        jobs.put(job)
    os._exit(1)


def _started() -> subprocess.Popen[bytes]:
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _exchange(process: subprocess.Popen[bytes], job: bytes) -> tuple[Any, BaseException | None]:
    assert process.stdin is not None and process.stdout is not None
    try:
        _write(process.stdin, job)
        answer = _read(process.stdout)
    except OSError:  # a broken pipe; Windows has another word for it
        answer = None
    if answer is None:
        raise ProcessEnded(f"ended by itself, exit status {process.wait()}")
    return pickle.loads(answer)


def _made(job: bytes) -> bytes:
    try:
        function, arguments = pickle.loads(job)
        return pickle.dumps((function(*arguments), None))
    except Exception as error:
        error.add_note("in a process of its own:\n" + traceback.format_exc())
        return pickle.dumps((None, portable(error)))


def _write(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes | None:
    """Returns what the other side wrote; None where it is gone."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = pipe.read(length)
    return content if len(content) == length else None
