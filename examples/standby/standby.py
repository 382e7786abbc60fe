#!/usr/bin/env python3
"""Hands out numbers as main.go does, and asks the agent before each whose turn it is.

    consul-lock agent --key=shop/numbers &
    standby.py 127.0.0.1:8080 http://127.0.0.1:8700

Nothing but Python's standard library, and psql, which finds the database by PGHOST and the like.
"""

import http.server
import json
import subprocess
import sys
import time
import urllib.request

AGENT = sys.argv[2]


def now():
    """Counts while the machine is suspended, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def turn():
    """The token of our turn and until when it is ours; or None, if the agent says so or nothing."""
    asked = now()  # before the question: the answer may take its time
    try:
        with urllib.request.urlopen(AGENT + "/leader", timeout=1) as answer:
            told = json.load(answer)
    except OSError:  # an HTTP error such as 503 is one as well
        return None
    return told["token"], asked + told["remaining_ms"] / 1000


def sql(statement, **values):
    settings = [f"--set={name}={value}" for name, value in values.items()]
    command = ["psql", "-XAtq", "--set=ON_ERROR_STOP=1", *settings]
    return subprocess.run(command, input=statement, capture_output=True, text=True, check=True).stdout


class Numbers(http.server.BaseHTTPRequestHandler):
    token = None  # of the tenure for which we know
    last = None

    def do_GET(self):
        if self.path != "/next":
            return self.answer(404, "")
        mine = turn()
        if mine is None:
            return self.answer(503, "not my turn")
        try:
            self.answer(200, str(self.take(*mine)))
        except subprocess.CalledProcessError as failed:
            self.answer(503, failed.stderr)

    def take(self, token, until):
        """Takes the next number, which nobody has before it is in the database."""
        mine = type(self)
        if mine.token != token:  # Others may have had turns. Reads by raising the fence.
            mine.last = int(sql("UPDATE counter SET fence = :'token' RETURNING last", token=token))
            mine.token = token
        if now() >= until:
            raise subprocess.CalledProcessError(1, "take", stderr="too late")
        # The token goes with the write, and the trigger compares it in this very statement.
        write = "UPDATE counter SET last = :'last', fence = :'token'"
        sql(write, last=mine.last + 1, token=token)
        mine.last += 1
        return mine.last

    def answer(self, code, text):
        self.send_response(code)
        self.end_headers()
        self.wfile.write((text + "\n").encode())


address, port = sys.argv[1].rsplit(":", 1)
http.server.HTTPServer((address, int(port)), Numbers).serve_forever()
