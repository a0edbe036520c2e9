#!/usr/bin/env python3
"""Counts words as ../python-exec does, in a web service; `mayfly-worker http` posts each message to it."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are used again

    def do_GET(self):
        self.answer(204 if self.path == "/health" else 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            result = {"words": len(body.decode().split())}
        except UnicodeDecodeError as error:
            return self.answer(422, f"no text: {error}")
        try:
            name = quote(self.headers["Mayfly-Message-Id"], safe="%")
            path = os.path.join(os.environ["OUT"], f"{name}.json")
            with open(f"{path}.part", "w", encoding="utf-8") as file:
                json.dump(result, file)
            os.replace(f"{path}.part", path)
        except OSError as error:
            return self.answer(503, str(error))
        return self.answer(204)

    def answer(self, status, reason=""):
        body = reason.encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
