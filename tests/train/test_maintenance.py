"""The cloud's notice: heard from a server on loopback, and asked for nowhere but there."""

import http.server
import threading
from pathlib import Path

import pytest

from lm.train import maintenance


@pytest.fixture
def google(tmp_path: Path) -> Path:
    file = tmp_path / "product_name"
    file.write_text("Google Compute Engine\n")
    return file


class Metadata:
    """A server that answers each path with its values in turn, and then waits."""

    def __init__(self, values: dict[str, list[str | int]]) -> None:
        self.values, self.asked, self.over = values, [], threading.Event()
        told = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.split("?")[0].rsplit("/", 1)[1]
                told.asked.append((self.path, self.headers.get("Metadata-Flavor")))
                left = told.values.get(name, [])
                if not left:
                    told.over.wait(20)
                value = left.pop(0) if left else 503
                self.send_response(value if isinstance(value, int) else 200)
                self.send_header("ETag", f"{len(left)}")
                self.end_headers()
                if isinstance(value, str):
                    self.wfile.write(value.encode())

            def log_message(self, *_) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    servers = []

    def make(**values) -> Metadata:
        servers.append(Metadata({name.replace("_", "-"): v for name, v in values.items()}))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"maintenance_event": ["NONE", "TERMINATE_ON_HOST_MAINTENANCE"]}, "maintenance"),
        ({"preempted": ["FALSE", 503, "TRUE"]}, "preemption"),
    ],
)
def test_a_notice_is_heard_as_soon_as_it_is_given(values, reason, google, serve):
    heard, asked = threading.Event(), []
    server = serve(**values)

    def ask(why: str) -> None:
        asked.append(why)
        heard.set()

    maintenance.watch(ask, server=server.address, product=google, retry=0.01)
    assert heard.wait(10)
    assert reason in asked[0]
    assert {flavor for _, flavor in server.asked} == {"Google"}
    assert all("wait_for_change=true" in path for path, _ in server.asked)


def test_a_migration_is_no_reason_to_stop(google, serve):
    asked = []
    server = serve(
        maintenance_event=["MIGRATE_ON_HOST_MAINTENANCE", *[404] * 9], preempted=[404] * 9
    )
    threads = maintenance.watch(asked.append, server=server.address, product=google, retry=0.01)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "nobody is asked for ever"
    assert not asked


@pytest.mark.parametrize("product", ["HVM domU\n", None])
def test_elsewhere_nothing_is_asked(product, tmp_path, serve):
    file = tmp_path / "product_name"
    if product is not None:
        file.write_text(product)
    server = serve()
    assert maintenance.watch(print, server=server.address, product=file) == []
    assert not server.asked
