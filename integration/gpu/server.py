"""A `kvwarden serve` of our own, and what one asks of it."""
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

LOOK = 0.01


class Server:
    """Running from `with` on; its log stays."""

    def __init__(self, binary, home, config):
        self.home = Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        top = f'listen = "127.0.0.1:{port}"\nstate_dir = "{self.home}"\n'
        file = self.home / "kvwarden.toml"
        # Not long: a step that was ended by force may leave engines, and the next needs their memory.
        file.write_text(f'{top}[limits]\norphan_grace = "5s"\n{config}')
        self.command = [str(binary), "serve", "--config", str(file)]

    def __enter__(self):
        with open(self.home / "serve.log", "wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        until(30, "the server to answer", self.is_up)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def log(self):
        return (self.home / "serve.log").read_text(errors="replace")[-2000:]

    def is_up(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"kvwarden ended with {self.process.returncode}:\n{self.log()}")
        try:
            return bool(self.status())
        except OSError:
            return False

    def status(self):
        return call(f"{self.base}/kvwarden/status")

    def model(self, name):
        return self.status()["loaded_models"][name]

    def devices(self):
        """The driver's reading, a list that is empty where there is no GPU."""
        return self.status()["gpu"]["devices"].get("devices", [])

    def wish(self, name, verb):
        call(f"{self.base}/kvwarden/models/{name}/{verb}", {})

    def bring(self, name, verb, state, within, rung=None):
        """Asks for it, waits until it is so, and tells how long that took."""
        begin = time.monotonic()
        self.wish(name, verb)
        self.wait_for(name, state, within, rung)
        return time.monotonic() - begin

    def wait_for(self, name, state, within, rung=None):
        def is_there():
            model = self.model(name)
            if model["state"] == "broken":
                raise RuntimeError(f"{name} is broken: {model['record']}")
            return model["state"] == state and rung in (None, model.get("rung"))

        until(within, f"{name} to be {rung or state}", is_there)

    def ask(self, name, prompt, tokens=1, within=600):
        """One greedy answer: when its first token came, and how much of the prompt was cached."""
        body = {
            "model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        }
        begin, first, text, usage = time.monotonic(), None, "", {}
        with request(f"{self.base}/v1/completions", body, within=within) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"])
                said = "".join(choice.get("text") or "" for choice in event.get("choices", []))
                if said and first is None:
                    first = time.monotonic() - begin
                text += said
                usage = event.get("usage") or usage
        details = usage.get("prompt_tokens_details") or {}
        # A first token of random weights may be no text at all.
        first = first if first is not None else time.monotonic() - begin
        return {
            "ttft_s": first, "text": text, "prompt_tokens": usage.get("prompt_tokens"),
            "cached_tokens": details.get("cached_tokens") or 0,
        }

    def handover(self, name):
        """Where the engine answers and with which key: what a next kvwarden would need."""
        for path in (self.home / "run").glob("*.handover"):
            endpoint = json.loads(path.read_text())["endpoint"]
            if endpoint["model"] == name:
                return endpoint
        raise RuntimeError(f"no engine of {name} is written down")

    def tree(self):
        """Pids of the server and all that descends from it."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo += parents.get(pid, [])
        return found

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def request(url, body=None, key=None, within=30):
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=within)


def call(url, body=None, key=None, within=30):
    with request(url, body, key, within) as answer:
        text = answer.read()
    return json.loads(text) if text.startswith((b"{", b"[")) else {}


def until(within, what, is_so):
    deadline = time.monotonic() + within
    while not (found := is_so()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {within} s for {what}")
        time.sleep(LOOK)
    return found
