"""What every kind of handler runs in the tests: the same work behind each of their protocols.

usage: brain.py exec | stdio | http PORT

The beginning of a message's body says what becomes of it. Notes go to $DIR, one line of JSON each.
"""

import base64
import hashlib
import json
import os
import sys
import time

DIR = os.environ["DIR"]
EXIT_CODES = {"done": 0, "retry": 75, "dead_letter": 65}
STATUS = {"done": 204, "retry": 503, "dead_letter": 422}


def note(name, **what):
    line = json.dumps(what) + "\n"
    with open(os.path.join(DIR, name), "a", encoding="utf-8") as file:
        file.write(line)


def exists(name):
    return os.path.exists(os.path.join(DIR, name))


def work(body, about):
    note("seen", size=len(body), sha256=hashlib.sha256(body).hexdigest(), **about)
    order, _, rest = body[:100].decode("utf-8", "replace").partition(" ")
    if order == "retry":
        return "retry", rest or "not yet"
    if order == "dead":
        return "dead_letter", rest or "broken"
    if order == "loud":
        sys.stdout.write("o" * 3_000_000 + "\n")
        sys.stderr.write("e" * 3_000_000 + "\n")
    if order == "die":
        note("dying")
        os._exit(3)
    if order == "hang":
        note("hanging", pid=os.getpid())
        time.sleep(1000)
    if order == "wait":
        note("waiting", pid=os.getpid())
        while not exists("go"):
            time.sleep(0.02)
    return "done", ""


def run_exec():
    with open(os.environ["MAYFLY_HEADERS_FILE"], encoding="utf-8") as file:
        headers = json.load(file)
    about = {
        "message_id": os.environ["MAYFLY_MESSAGE_ID"] or None,
        "attempt": int(os.environ["MAYFLY_ATTEMPT"]),
        "redelivered": os.environ["MAYFLY_REDELIVERED"] == "1",
        "content_type": os.environ["MAYFLY_CONTENT_TYPE"] or None,
        "headers": headers,
    }
    outcome, reason = work(sys.stdin.buffer.read(), about)
    print(reason, file=sys.stderr)
    sys.exit(EXIT_CODES[outcome])


def unwrap(envelope):
    body = base64.b64decode(envelope["body_base64"]) if "body_base64" in envelope else envelope["body"].encode()
    keys = ["message_id", "attempt", "redelivered", "content_type", "headers"]
    return body, {key: envelope[key] for key in keys}


def run_stdio():
    import threading

    answers, sys.stdout = sys.stdout, sys.stderr
    lock = threading.Lock()

    def say(**answer):
        with lock:
            print(json.dumps(answer), file=answers, flush=True)

    def one(envelope):
        outcome, reason = work(*unwrap(envelope))
        say(id=envelope["id"], outcome=outcome, reason=reason, after="20s" if outcome == "retry" else None)

    note("lives", pid=os.getpid())
    say(ready=True)
    for line in sys.stdin:
        threading.Thread(target=one, args=(json.loads(line),), daemon=True).start()


def run_http(port):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.answer("done", "")

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/envelope":
                body, about = unwrap(json.loads(body))
            else:
                headers = self.headers.get("Mayfly-Headers")
                about = {
                    "message_id": self.headers.get("Mayfly-Message-Id"),
                    "attempt": int(self.headers["Mayfly-Attempt"]),
                    "redelivered": self.headers["Mayfly-Redelivered"] == "1",
                    "content_type": self.headers.get("Content-Type"),
                    "headers": headers and json.loads(headers),
                }
            self.answer(*work(body, about))

        def answer(self, outcome, reason):
            reason = reason.encode()
            self.send_response(STATUS[outcome])
            if outcome == "retry":
                self.send_header("Retry-After", "20")
            if outcome != "done":
                self.send_header("Content-Length", str(len(reason)))
            self.end_headers()
            if outcome != "done":
                self.wfile.write(reason)

    ThreadingHTTPServer.request_queue_size = 100
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    note("lives", pid=os.getpid())
    server.serve_forever()


kind = sys.argv[1]
if kind == "exec":
    run_exec()
elif kind == "stdio":
    run_stdio()
else:
    run_http(int(sys.argv[2]))
