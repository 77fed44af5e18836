#!/usr/bin/env python3
"""A scripted engine: speaks contract::control and misbehaves as its agent's description says.

The words of the description (crash, hang, refuse, hog, stubborn, child, daemon, fat, leak, runs, unready, flood) and of the file
`mode` in the state folder (silent, exit, nonsense, flood, outside) choose what it does. Everything that it was told
is a line in `heard` in the state folder.
"""
import ctypes, json, os, signal, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# As an engine does: it adopts orphans (PR_SET_CHILD_SUBREAPER).
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
state = sys.argv[sys.argv.index("--state") + 1]
assert sys.argv[1] == "serve" and "127.0.0.1:0" in sys.argv
mode = open(state + "/mode").read() if os.path.exists(state + "/mode") else ""
lock = threading.Lock()
kept = 0
words = ""


def say(frame):
    with lock:
        sys.stdout.write(json.dumps(frame) + "\n")
        sys.stdout.flush()


def note(what):
    with open(state + "/heard", "a") as file:
        file.write(json.dumps(what) + "\n")


def run_record(uid, sequence):
    return {"frame": "run", "id": f"run-{sequence}", "sequence": sequence, "agentUid": uid, "generation": 1,
            "taskId": "t", "sessionId": "s", "subject": "local", "startedAtMs": 1, "endedAtMs": 2,
            "outcome": "completed", "reason": "", "model": "m", "modelCalls": 1, "inputTokens": 1,
            "outputTokens": 1, "cachedInputTokens": 0, "estimated": False, "costMicros": 0, "currency": "",
            "tools": {}, "traceId": ""}


def send_runs(uid):
    say(run_record("another", 99))
    while kept < 5:
        for sequence in range(kept + 1, 6):
            say(run_record(uid, sequence))
        time.sleep(0.1)


def applied(frame):
    global words
    bundle = frame["bundle"]
    wish = bundle["agent"].get("description", "")
    answer = {"generation": bundle["generation"], "digest": digest_of(wish)}
    if "refuse" in wish:
        say({"frame": "refused", **answer, "reason": "the script says no"})
        return
    if "hang" in wish:
        return
    if "crash" in wish:
        print("about to crash", file=sys.stderr, flush=True)
        os._exit(3)
    words = wish
    say({"frame": "applied", **answer})
    if "hog" in wish:
        globals()["hog"] = bytearray(120 << 20)
    if "child" in wish:
        child = subprocess.Popen(["sleep", "1000"], process_group=0) if sys.version_info >= (3, 11) else \
            subprocess.Popen(["sleep", "1000"], preexec_fn=os.setpgrp)
        note({"child": child.pid})
    if "daemon" in wish:
        daemon("fat" in wish)
    if "leak" in wish:
        print("key=" + frame["secrets"].get("TEST_KEY", "absent"), file=sys.stderr, flush=True)
    if "flood" in wish:
        threading.Thread(target=flood, daemon=True).start()
    if "runs" in wish:
        threading.Thread(target=send_runs, args=(bundle["uid"],), daemon=True).start()
    say({"frame": "ready", "ready": "unready" not in wish, "reason": "told so" if "unready" in wish else ""})
    note({"applied": bundle["generation"]})


def daemon(fat):
    """Nobody's child, in a session of its own, deaf to whatever can be ignored."""
    if (child := os.fork()) != 0:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    for descriptor in range(3):
        os.close(descriptor)
    note({"daemon": os.getpid()})
    globals()["held"] = bytearray(120 << 20) if fat else None
    while True:
        time.sleep(1000)


def flood():
    while True:
        sys.stderr.write("noise " * 1000 + "\n")


def digest_of(_):
    """The digest is the runtime's to compute; the test hands it down in the journal folder, by generation."""
    return current


class Edge(BaseHTTPRequestHandler):
    """Answers with what it was asked; `/message:stream` sends back each chunk as it comes, then ticks for ever."""
    protocol_version = "HTTP/1.1"

    def chunks(self):
        if self.headers.get("transfer-encoding") != "chunked":
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def send(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def answer(self):
        stream = self.path == "/message:stream"
        self.send_response(200 if stream else 207)
        self.send_header("content-type", "text/event-stream" if stream else "application/json")
        self.send_header("set-cookie", "a=b")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if not stream:
            body = b"".join(self.chunks()).decode()
            asked = {"method": self.command, "path": self.path, "body": body, "headers": dict(self.headers.items())}
            self.send(json.dumps(asked).encode())
            self.wfile.write(b"0\r\n\r\n")
            return
        try:
            for chunk in self.chunks():
                self.send(chunk)
            while True:
                self.send(b"tick\n")
                time.sleep(0.02)
        except OSError:
            note({"cancelled": True})
            self.close_connection = True

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Edge)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
note({"pid": os.getpid(), "environment": sorted(os.environ), "core": open("/proc/self/limits").read()})
if mode == "exit":
    print("cannot start", file=sys.stderr, flush=True)
    sys.exit(4)
if mode == "nonsense":
    for _ in range(100):
        print("hello")
    sys.stdout.flush()
if mode == "flood":
    while True:
        sys.stdout.write("x" * 65536)
if mode == "outside":
    say({"frame": "listening", "address": "192.0.2.1:80"})
elif mode != "silent":
    say({"frame": "listening", "address": "127.0.0.1:%d" % server.server_port})

for line in sys.stdin:
    frame = json.loads(line)
    kind = frame.pop("frame")
    if kind == "apply":
        # As contract::bundle::Bundle::digest: SHA-256 of the bundle's JSON as it was sent.
        import hashlib
        raw = line[line.index('"bundle":') + len('"bundle":'):]
        raw = raw[:json.JSONDecoder().raw_decode(raw)[1]]
        current = hashlib.sha256(raw.encode()).hexdigest()
        note({"apply": frame["bundle"]["generation"], "trust": frame["trust"],
              "secrets": sorted(frame["secrets"])})
        applied(frame)
    elif kind == "peers":
        note({"peers": frame["peers"]})
    elif kind == "runsKept":
        kept = max(kept, frame["sequence"])
        note({"kept": kept})
    elif kind == "drain":
        note({"drain": frame["graceMs"] if "graceMs" in frame else frame["grace_ms"]})
        if "stubborn" not in words:
            sys.exit(0)
note({"end": True})
while "stubborn" in words:
    time.sleep(1)
