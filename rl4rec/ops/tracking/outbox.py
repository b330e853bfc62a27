"""What is to be logged, on disk, and the thread that sends it.

A stage puts operations into its outbox, `.rl4rec/outbox/<name>.jsonl`, and goes on; a thread carries them out on the
server. What a server does not take stays there. The next stage, or `rl4rec sync`, sends what earlier processes have
left, whether the server was away or the process was killed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from rl4rec._console import Progress, redact
from rl4rec._process import FOLDER
from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.ops.tracking.database import UnfitDatabase
from rl4rec.ops.tracking.delivery import METRICS_A_REQUEST, Delivery, Operation, is_lasting
from rl4rec.ops.tracking.outbox_files import OutboxFiles
from rl4rec.ops.tracking.server import answers, connect, server_address
from rl4rec.params import TrackingParams

logger = logging.getLogger("rl4rec.tracking")

ROOT = FOLDER / "outbox"
_GATHER_SECONDS = 2.0  # metrics are sent together
_RETRY_SECONDS = 15.0
_ATTEMPTS = 3  # at an operation that fails on a server that is well
_PROBE_SECONDS = 1.5  # for an answer at the end of a run; two in vain, and the run ends without the server
_STUCK_SECONDS = 600.0  # without an operation done, at the end of a run

Entry = tuple[Operation, PreparedData | None]


class Outbox:
    """The outbox of this process's run.

    Args:
        params: names the server.
        root: the folder with the outboxes.
    """

    def __init__(self, params: TrackingParams, root: Path = ROOT) -> None:
        self._params, self._files = params, OutboxFiles(root, uuid.uuid4().hex)
        self._queue: list[Entry] = []
        self._changed = threading.Condition()
        self._closed = self._finished = self._failed = self._abandoned = False
        self._progress = 0.0
        self._files.open()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def put(self, operation: Operation, data: PreparedData | None = None) -> None:
        """Add an operation, with the data that it is about, if any; returns at once."""
        with self._changed:
            self._files.append(operation)
            self._queue.append((operation, data))
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until all is sent, for as long as the server answers; what it does not take stays on disk."""
        with self._changed:
            self._closed, self._failed, self._progress = True, not self._thread.is_alive(), time.monotonic()
            self._changed.notify_all()
        self._wait()
        with self._changed:
            self._abandoned = not self._finished
            self._changed.notify_all()
        if self._abandoned:
            self._files.note_silence()
            logger.warning("MLflow did not take everything: the next stage, or `rl4rec sync`, sends the rest")

    def _wait(self) -> None:
        """Wait while the server answers and there is progress; not for one that has been silent lately."""
        address, in_vain = server_address(self._params), 0
        while in_vain < 2:
            with self._changed:
                self._changed.wait_for(lambda: self._finished or self._failed, timeout=0.5)
                if self._finished or self._failed or time.monotonic() - self._progress > _STUCK_SECONDS:
                    return
            if self._files.server_was_silent():
                return
            in_vain = 0 if answers(address, _PROBE_SECONDS) else in_vain + 1

    def _work(self) -> None:
        try:
            self._send_all()
        finally:
            self._files.close()  # nobody else sends what this thread may still be sending
            with self._changed:
                self._finished = not self._queue
                self._failed = not self._finished  # whatever ended this thread, nobody waits for it
                self._changed.notify_all()

    def _send_all(self) -> None:
        earlier_waits = not self._send_earlier()
        courier = _Courier(self._params, self._files.name, None, system_metrics=self._params.system_metrics)
        while batch := self._next_batch():
            try:
                courier.carry(batch)
            except Exception as error:
                self._pause(error, first=courier.attempts == 1)
                continue
            with self._changed:
                del self._queue[: len(batch)]
                self._progress, self._failed = time.monotonic(), False
            self._files.sent(len(batch), courier.run_id)
            if earlier_waits:  # the server is there by now; a result goes to a run that may be among them
                earlier_waits = False
                self._send_earlier()
        if not self._abandoned:
            self._files.remove()

    def _send_earlier(self) -> bool:
        """Send what earlier runs have left; False: the server does not take it."""
        try:
            for path in self._files.left_behind():
                send_left_behind(path, self._params)
        except Exception as error:
            logger.warning("MLflow: what an earlier run left waits: %s", _short(error))
            return False
        return True

    def _next_batch(self) -> list[Entry]:
        """What to do next: an operation, or the metrics of some seconds; empty when all is done, or given up."""
        with self._changed:
            if self._abandoned:
                return []
            self._changed.wait_for(lambda: bool(self._queue) or self._closed)
            if self._queue and self._queue[0][0]["do"] == "metrics":
                self._changed.wait_for(
                    lambda: self._closed or len(self._queue) >= METRICS_A_REQUEST, timeout=_GATHER_SECONDS
                )
            return _leading(self._queue)

    def _pause(self, error: Exception, *, first: bool) -> None:
        if first:
            what = "cannot use its database" if isinstance(error, UnfitDatabase) else "does not answer"
            logger.warning("MLflow %s, training goes on: %s", what, _short(error))
        with self._changed:
            was_closed, self._failed = self._closed, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._abandoned or (self._closed and not was_closed), timeout=_RETRY_SECONDS)


class _Courier:
    """Connects when it must, and knows which operations to give up."""

    def __init__(self, params: TrackingParams, name: str, run_id: str | None, *, system_metrics: bool) -> None:
        self.attempts = 0  # at the batch in hand
        self._params, self._name, self._run_id, self._measure = params, name, run_id, system_metrics
        self._delivery: Delivery | None = None

    @property
    def run_id(self) -> str | None:
        """Of the run on the server."""
        return self._run_id if self._delivery is None else self._delivery.run_id

    def carry(self, batch: Sequence[Entry]) -> None:
        """Carry out operations; one that the server will never take is named in a warning.

        Raises:
            Exception: whatever MLflow raises if another time may be better.
        """
        operation, data = _merged(batch)
        try:
            if self._delivery is None:
                client, experiment = connect(self._params)
                self._delivery = Delivery(client, experiment, self._name, self._run_id, system_metrics=self._measure)
            self._delivery(operation, data)
        except Exception as error:
            self.attempts += 1
            hopeless = self.attempts >= _ATTEMPTS and self._delivery is not None and self._delivery.server_is_well()
            if not hopeless and not is_lasting(error):
                raise
            logger.warning("MLflow: %s not tracked: %s", operation["do"], _short(error))
        self.attempts = 0


def send_left_behind(path: Path, params: TrackingParams, *, name: str | None = None) -> bool:
    """Send what an earlier process has left; False: it is still at work.

    Args:
        path: its outbox.
        params: the `tracking` section.
        name: of the work, to show its progress.

    Raises:
        Exception: whatever MLflow raises; what was not taken stays.
    """
    files = OutboxFiles(path.parent, path.stem)
    with files.claimed() as ours:
        if not ours:
            return False
        operations, run_id = files.read()
        if operations and operations[-1]["do"] != "end":  # it was killed
            operations.append({"do": "end", "status": "KILLED", "time": int(path.stat().st_mtime * 1000)})
        courier = _Courier(params, files.name, run_id, system_metrics=False)
        queue: list[Entry] = [(operation, None) for operation in operations]
        progress = None if name is None else Progress(name, total=len(queue), unit="operation")
        with progress or contextlib.nullcontext():
            while batch := _leading(queue):
                try:
                    courier.carry(batch)
                except Exception:
                    if courier.attempts >= _ATTEMPTS:
                        raise
                    continue
                del queue[: len(batch)]
                files.sent(len(batch), courier.run_id)
                if progress is not None:
                    progress.update(len(batch))
        files.remove()
    return True


def sync(params: TrackingParams, root: Path = ROOT) -> int:
    """Send all that earlier processes have left; of how many runs.

    Raises:
        UserError: the server does not take it.
    """
    try:
        paths = OutboxFiles(root, "").left_behind()
        return sum(
            send_left_behind(path, params, name=f"sync, run {number} of {len(paths)}")
            for number, path in enumerate(paths, start=1)
        )
    except Exception as error:
        address, mended = redact(server_address(params)), isinstance(error, UnfitDatabase)
        raise UserError(
            f"MLflow at {address} did not take everything, the rest stays: {_short(error)}. "
            f"Run `rl4rec sync` again when it {'is mended' if mended else 'answers'}"
        ) from None


def _leading(queue: Sequence[Entry]) -> list[Entry]:
    """The first operation, or all metrics at the start."""
    count = 0
    while count < min(len(queue), METRICS_A_REQUEST) and queue[count][0]["do"] == "metrics":
        count += 1
    return list(queue[: max(count, 1)])


def _merged(batch: Sequence[Entry]) -> Entry:
    if len(batch) == 1:
        return batch[0]
    return {"do": "metrics", "rows": [row for operation, _ in batch for row in operation["rows"]]}, None


def _short(error: Exception) -> str:
    text = redact(str(error) or type(error).__name__).split("\n")[0]
    return text if isinstance(error, UserError) else text[:300]  # ours say at the end what to do
