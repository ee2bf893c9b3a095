"""Clients of the chaos run, and the tally of their requests."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

BUILTIN = ("bard", "alice")
EXTERNAL = "external"
PROMPTS = ("Who goes there?", "Tell me of the sea.", "Why?")
LENGTHS = (4, 60, 300)
EXTERNAL_LENGTHS = (5, 400, 6000)
TIMEOUT = 90.0
"""Seconds without a byte after which a request counts as stuck."""


class Question(NamedTuple):
    """Request content with a known answer."""

    model: str
    prompt: int
    length: int

    def body(self, number: int, stream: bool) -> dict[str, Any]:
        """Return a unique request body: greedy, so the seed only makes it different from others."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": PROMPTS[self.prompt]}],
            "max_tokens": self.length,
            "temperature": 0,
            "seed": number,
            "deterministic": True,
            "ignore_eos": True,
            "stream": stream,
        }


QUESTIONS = [Question(model, p, n) for model in BUILTIN for p in range(3) for n in LENGTHS]


def external_answer(length: int) -> str:
    """Return the answer of the fake worker."""
    return "".join(f"{EXTERNAL}{i} " for i in range(length))


@dataclass(frozen=True)
class Plan:
    """Request, with the behaviour of its client."""

    question: Question
    number: int
    stream: bool
    manner: str
    """read, slow (pauses between reads) or leave (closes after `reads` reads, or before any)."""
    reads: int

    @classmethod
    def drawn(cls, chance: random.Random, number: int) -> Plan:
        """Draw a plan, always from the same number of random numbers, so that seeds repeat."""
        question = chance.choice(QUESTIONS)
        length = chance.choice(EXTERNAL_LENGTHS)
        if chance.random() < 0.25:
            question = Question(EXTERNAL, 0, length)
        manner = chance.choices(("read", "slow", "leave"), (7, 1, 2))[0]
        return cls(question, number, chance.random() < 0.7, manner, chance.randrange(8))


@dataclass
class Tally:
    """Tally of all requests by outcome."""

    answers: dict[Question, str] = field(default_factory=dict)
    sent: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def right(self, question: Question) -> str:
        if question.model == EXTERNAL:
            return external_answer(question.length)
        return self.answers[question]

    def count_end(self, plan: Plan, end: str, text: str | None = None) -> None:
        """Count a finished request; compare its answer with the expected one."""
        with self.lock:
            self.sent += 1
            self.ends[end] += 1
            if text is not None and text != self.right(plan.question):
                self.wrong.append(f"{plan}: {text!r}")

    def count(self, *beginnings: str) -> int:
        return sum(n for end, n in self.ends.items() if end.startswith(beginnings))

    def __str__(self) -> str:
        ends = ", ".join(f"{n} {end}" for end, n in sorted(self.ends.items()))
        return f"{self.sent} sent = {ends}; {len(self.wrong)} wrong"


class Client(threading.Thread):
    """Client that sends one request after the other until `over` is set."""

    def __init__(self, port: int, tally: Tally, seed: str, over: threading.Event) -> None:
        super().__init__(name=f"client {seed}")
        self._port = port
        self._tally = tally
        self._chance = random.Random(seed)
        self._over = over
        self._base = self._chance.randrange(2**30)

    def run(self) -> None:
        number = 0
        while not self._over.is_set():
            plan = Plan.drawn(self._chance, self._base + number)
            number += 1
            end, text = self.play(plan)
            self._tally.count_end(plan, end, text)
            if end.startswith("rejected"):
                self._over.wait(0.2)

    def play(self, plan: Plan) -> tuple[str, str | None]:
        """Send the request; return its outcome, and its answer if that is complete."""
        kind = "external" if plan.question.model == EXTERNAL else "builtin"
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        try:
            body = json.dumps(plan.question.body(plan.number, plan.stream))
            connection.request("POST", "/v1/chat/completions", body)
            if plan.manner == "leave" and plan.reads == 0:
                threading.Event().wait(0.05)
                return "cancelled", None
            answer = connection.getresponse()
            data = self._read(answer, plan)
            if data is None:
                return "cancelled", None
            if answer.status != 200:
                return f"rejected ({json.loads(data)['error']['code']})", None
            return _outcome(data, plan.stream, kind)
        except TimeoutError:
            return "stuck", None
        except (http.client.HTTPException, OSError) as error:
            return f"broken off without a word ({kind}, {type(error).__name__})", None
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse, plan: Plan) -> bytes | None:
        """Return the whole response; None when the client has left."""
        data, reads = b"", 0
        size = 2000 if plan.manner == "slow" else 65536
        try:
            while chunk := answer.read1(size):
                data += chunk
                reads += 1
                if plan.manner == "leave" and reads >= plan.reads:
                    return None
                if plan.manner == "slow" and reads <= 40:
                    threading.Event().wait(0.05)
        except (http.client.IncompleteRead, ConnectionResetError):
            if b'"error"' not in data:
                raise
        return data


def _outcome(data: bytes, stream: bool, kind: str) -> tuple[str, str | None]:
    if not stream:
        return "answered", json.loads(data)["choices"][0]["message"]["content"]
    text = ""
    for line in data.decode().splitlines():
        if line == "data: [DONE]":
            return "answered", text
        if line.startswith("data: "):
            event = json.loads(line[6:])
            if "error" in event:
                return f"broken off ({kind}, {event['error']['code']})", None
            text += event["choices"][0]["delta"].get("content") or ""
    return f"ended early ({kind})", None
