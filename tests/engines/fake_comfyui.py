"""A fake of ComfyUI's API: prompts stay in the queue until GET /fake/finish."""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers like ComfyUI's server.py."""

    queue = 0

    def do_GET(self) -> None:
        if self.path == "/fake/finish":
            Handler.queue = 0
        answers = {
            "/system_stats": {"system": {"os": "posix"}, "devices": [{"name": "cpu"}]},
            "/prompt": {"exec_info": {"queue_remaining": Handler.queue}},
        }
        self.answer(answers.get(self.path, {}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        Handler.queue += 1
        self.answer({"prompt_id": str(Handler.queue), "number": 0, "node_errors": {}})

    def answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    ThreadingHTTPServer((chosen.listen, chosen.port), Handler).serve_forever()
