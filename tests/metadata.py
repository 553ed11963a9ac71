"""A metadata service as an EC2 instance has it (IMDSv2), on localhost.

with MetadataServer() as server:
    environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = server.url
    server.announce(120)
"""

import itertools
import json
import threading
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MetadataServer:
    """Has no notice until `announce`. Behaviour can be changed while it runs."""

    def __init__(self):
        self.notice: str | None = None
        self.tokens: set[str] = set()
        self.failing: set[str] = set()
        """Methods, PUT or GET, that are answered with an error of the server."""
        self.silent = threading.Event()
        """While set, GET is accepted and not answered."""
        self.asked: list[tuple[str, int | None]] = []
        """Method and answer of every request; None: not answered."""
        self.told = threading.Condition()
        self.seen = 0
        numbers = itertools.count()

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(handler):
                ttl = handler.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
                if handler.path != "/latest/api/token":
                    self._answer(handler, 404)
                elif not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
                    self._answer(handler, 400)
                else:
                    token = f"token-{next(numbers)}"
                    self.tokens.add(token)
                    self._answer(handler, 200, token)

            def do_GET(handler):
                if self.silent.is_set():
                    self._note("GET", None)
                    self.ended.wait()
                elif handler.headers.get("X-aws-ec2-metadata-token") not in self.tokens:
                    self._answer(handler, 401)
                elif handler.path == "/latest/meta-data/spot/instance-action" and self.notice:
                    self._answer(handler, 200, self.notice)
                else:
                    self._answer(handler, 404)

            def log_message(handler, *args):
                pass

        self.ended = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def announce(self, seconds: float, action: str = "terminate"):
        """The instance will be taken away in so many seconds; AWS says two minutes."""
        at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        self.notice = json.dumps({"action": action, "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})

    def until_asked(self, method: str, answer: int | None, limit_s: float = 20):
        """Such a request has come, after the one that the last call of this waited for."""
        with self.told:
            came = self.told.wait_for(lambda: (method, answer) in self.asked[self.seen :], limit_s)
            assert came, f"no {method} with {answer}: {self.asked}"
            self.seen = self.asked.index((method, answer), self.seen) + 1

    def _answer(self, handler, code, text=""):
        code = 503 if handler.command in self.failing else code
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(text) if code == 200 else 0))
        handler.end_headers()
        if code == 200:
            handler.wfile.write(text.encode())
        self._note(handler.command, code)

    def _note(self, method, code):
        with self.told:
            self.asked.append((method, code))
            self.told.notify_all()
