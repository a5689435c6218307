"""The notice that Google's cloud gives before it takes a machine away.

Its metadata server answers when something changes (cloud.google.com/compute/docs/metadata,
``maintenance-event`` and ``preempted``): one waiting request each, in a thread of its own.
Elsewhere nothing is asked: the machine's own description says where it stands.
"""

import logging
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

SERVER = "http://169.254.169.254"
"""metadata.google.internal, without asking for its name."""
PRODUCT = Path("/sys/class/dmi/id/product_name")
NOTICES = {
    "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE", "the host's maintenance"),
    "preempted": ("TRUE", "preemption"),
}
"""Path -> the value that ends the machine (a migration leaves it running), and its name."""
WAIT_SECONDS = 60
RETRY_SECONDS = 10.0
TRIES = 5
"""Failures in a row after which nobody is there to ask, as in some containers."""


def on_google_cloud(product: Path = PRODUCT) -> bool:
    """Whether this machine is one of Google's cloud; asks no network."""
    try:
        return product.read_text(encoding="utf-8").startswith("Google")
    except OSError:
        return False


def watch(
    ask: Callable[[str], None],
    *,
    server: str = SERVER,
    product: Path = PRODUCT,
    retry: float = RETRY_SECONDS,
) -> list[threading.Thread]:
    """Call ``ask`` with a reason once this machine is to be taken away.

    Args:
        ask: told the reason, from another thread.
        server: where the metadata are.
        product: the file that says whose machine this is.
        retry: seconds between two tries where the server does not answer.

    Returns:
        The threads, which end with the process; none where this is not Google's cloud.
    """
    if not on_google_cloud(product):
        return []
    threads = [
        threading.Thread(target=_follow, args=(ask, server, notice, retry), daemon=True)
        for notice in NOTICES
    ]
    for thread in threads:
        thread.start()
    return threads


def _follow(ask: Callable[[str], None], server: str, notice: str, retry: float) -> None:
    value, reason = NOTICES[notice]
    etag, failures = "0", 0
    while failures < TRIES:
        address = f"{server}/computeMetadata/v1/instance/{notice}"
        query = f"?wait_for_change=true&timeout_sec={WAIT_SECONDS}&last_etag={etag}"
        request = urllib.request.Request(address + query, headers={"Metadata-Flavor": "Google"})
        try:
            with _direct.open(request, timeout=WAIT_SECONDS + 10) as answer:
                told = answer.read(1000).decode("utf-8", "replace").strip()
                etag = answer.headers.get("ETag", "0")
        except (OSError, ValueError) as error:
            failures += 1
            logger.info("%s: %s", address, error)
            _pause.wait(retry)
            continue
        failures = 0
        if told == value:
            ask(reason)
            return


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy would answer for itself, not for this machine."""
_pause = threading.Event()
