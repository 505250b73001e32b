"""A server of the chat-completions protocol on this machine, that answers by script and remembers what it was asked."""

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANG, CUT, HTML = "hang", "cut", "html"


def status(number, headers=None, **error):
    """A reply that is an error of the API."""
    return number, headers or {}, {"error": {"message": "as scripted", "type": "t", "code": None, **error}}


@dataclass
class Model:
    """script: (request, its number from 0) -> text of the answer, a status(), HANG, CUT or HTML."""

    script: object
    requests: list = field(default_factory=list)
    times: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)
    delay_s: float = 0.0
    url: str = ""


def completion(text):
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }


def _handler(model):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with model.lock:
                number = len(model.requests)
                model.requests.append(request)
                model.times.append(time.monotonic())
                model.headers.append({name.lower(): value for name, value in self.headers.items()})
                model.at_once += 1
                model.most_at_once = max(model.most_at_once, model.at_once)
            try:
                time.sleep(model.delay_s)
                self.answer(model.script(request, number))
            finally:
                with model.lock:
                    model.at_once -= 1

        def answer(self, reply):
            if reply == HANG:
                model.closing.wait(20)
                return
            if reply == HTML:
                self.send(200, {"Content-Type": "text/html"}, b"<html>It works!</html>")
                return
            code, headers, body = (200, {}, completion(reply)) if isinstance(reply, str) else reply
            data = json.dumps(body).encode()
            self.send(code, {"Content-Type": "application/json", **headers}, data, cut=reply == CUT)

        def send(self, code, headers, data, cut=False):
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = cut

    return Handler


@contextmanager
def serving(script, delay_s=0.0):
    model = Model(script, delay_s=delay_s)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(model))
    server.daemon_threads = True
    model.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield model
    finally:
        model.closing.set()
        server.shutdown()
        server.server_close()
