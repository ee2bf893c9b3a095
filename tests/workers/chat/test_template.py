"""Chat templates: supported features, and limits of time and memory."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.workers.conftest import Start
from tests.workers.process import WorkerProcess
from tests.workers.random_gguf import write_random_gguf
from workers.chat import template as module
from workers.chat.template import ChatTemplate, TemplateError
from workers.chat.template_sandbox import LONGEST, TemplateLimitError, clock, compiled

NOON = 1_700_000_000.0


async def rendered(source: str, **variables: Any) -> str:
    """Render a short chat."""
    template = ChatTemplate(source, bos="<s>", eos="</s>", defaults={"kept": 1})
    return await template.render([{"role": "user", "content": "Hi"}], variables, at=NOON)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ kept }}{{ eos_token }}", "<s>Hi1</s>"),
        ("{{ {'ü': [1]} | tojson }}{{ [1] | tojson(indent=1) }}", '{"ü": [1]}[\n 1\n]'),
        ("{% for n in [1, 2] %}{% if n == 1 %}{% continue %}{% endif %}{{ n }}{% endfor %}", "2"),
        ("{{ 'a,b'.split(',') | join('-') }}{{ '-'.join(['a', 'b']) }}", "a-ba-b"),
        ("{{ [1, 2] | map('string') | join('+') }}{{ [{'a': 'x'}] | join(',', 'a') }}", "1+2x"),
        ("{{ 'aXbX' | replace('X', '--') }}{{ 'aX'.replace('X', 'y') }}", "a--b--ay"),
        ("{{ 'a\\nb' | indent(2) }}{{ '%s is %d' | format('x', 5) }}", "a\n  bx is 5"),
        ("{{ 'a' ~ 1 ~ 'b' }}{{ 'a' + 'b' }}{{ 'ab' * 2 }}{{ 7 % 4 }}{{ 2 ** 5 }}", "a1bababab332"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(1) }}{% set y %}s{% endset %}{{ y }}",
         "[1]s"),
        (("{% set n = namespace(n=0) %}{% for i in [4, 6] %}{% set n.n = n.n + i %}{% endfor %}"
          "{{ n.n }}"), "10"),
        ("{% generation %}said{% endgeneration %}", "said"),
        ("{{ '{} and {a}'.format(1, a=2) }}{{ [1, 2, 3] | sum }}{{ 3.14159 | round(2) }}",
         "1 and 263.14"),
    ],
    ids=str,
)  # fmt: skip
async def test_features_that_templates_use(source: str, text: str) -> None:
    assert await rendered(source) == text
    values = {"messages": [{"content": "Hi"}], "bos_token": "<s>", "eos_token": "</s>", "kept": 1}
    assert compiled(source, bounded=False).render(values) == text


async def test_the_time_is_that_of_the_request() -> None:
    day = await rendered("{{ strftime_now('%Y-%m-%d') }}")
    assert day == clock(NOON)("%Y-%m-%d")
    assert day.startswith("2023-11-1")


HUGE = [
    "{{ 'a' * 1000000000 }}",
    "{{ [0] * 1000000000 }}",
    "{{ 10 ** 100000000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a'.zfill(width=1000000000) }}",
    "{{ (1).to_bytes(1000000000, 'big') }}",
    "{{ ('a\\n' * 10000) | indent(1000000) }}",
    "{{ [[[[1]]]] | tojson(indent=1000000000) }}",
    "{{ range(100000) | join('a' * 100000) }}",
    "{{ ('a' * 100000).join(['b'] * 100000) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "{{ ('a' * 10000000) ~ ('a' * 10000000) }}",
    "{% set s = 'a' * 1000000 %}{% for i in range(100000) %}{{ s }}{% endfor %}",
    "{% set s='a'*1000000 %}{% set t %}{% for i in range(100000) %}{{s}}{% endfor %}{% endset %}",
    "{% set n = namespace(s='aa') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s=[1]) %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{{ [[1], [2]] | sum(start=[]) }}",
    "{{ 'http://a ' | urlize }}",
    "{{ lipsum(n=100000) }}",
]


@pytest.mark.parametrize("source", HUGE)
def test_a_disproportionate_step_is_not_run_inline(source: str) -> None:
    """Check that it is rejected early: the largest text made inline has LONGEST characters."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateLimitError):
        compiled(source, bounded=True).render()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'a' * 100000000 }}", f"wrote more than {LONGEST}"),
        ("{% set a = 'a' * 9999999999 %}", "took more than 1073741824 bytes"),
        ("{{ raise_exception('no such role') }}", "does not render: no such role"),
        ("{{ 'a' * 100000000 }}{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% for %}", "does not compile"),
        ("{{ '" + "a" * 200_000 + "' }}", "more than 100000 characters"),
    ],
    ids=lambda text: text[:40],
)
async def test_a_rendering_error_is_one_sentence(
    source: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROCESS_TIMEOUT", 60)
    with pytest.raises(TemplateError, match=message) as error:
        await rendered(source)
    assert str(error.value).startswith("The chat template ")


async def test_a_slow_template_is_rendered_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "{% for i in range(300) %}{% for j in range(3000) %}{% endfor %}{% endfor %}{{ kept }}"
    monkeypatch.setattr(module, "INLINE_TIMEOUT", 0.01)
    template = ChatTemplate(slow, bos="", eos="", defaults={"kept": "ü"})
    template._timeout = 0.01
    assert await template.render([], {}, at=NOON) == "ü"
    assert template._timeout < 0.02


FOR_EVER = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"


def test_a_template_that_loops_does_not_delay_other_requests(start: Start, tmp_path: Path) -> None:
    template = f"{{% if loops %}}{FOR_EVER}{{% endif %}}{{{{ 'a' * (times or 1) }}}}"
    path = write_random_gguf(tmp_path / "m.gguf", context=4096, chat_template=template)
    worker = start(path, "--ctx-size", "4096")
    with worker.stream("/v1/completions", {"prompt": "a", "max_tokens": 4000}) as chunks:
        next(chunks)
        status, answer = ask(worker, loops=True)
        assert (status, answer["error"]["param"]) == (400, "messages")
        assert "more than" in answer["error"]["message"]
        status, answer = ask(worker, times=10**10)
        assert (status, answer["error"]["param"]) == (400, "messages")
        assert ask(worker)[0] == 200
    memory = Path(f"/proc/{worker.process.pid}/status")
    if memory.exists():
        (peak,) = [line for line in memory.read_text().splitlines() if line.startswith("VmHWM")]
        assert int(peak.split()[1]) < 400_000


def ask(worker: WorkerProcess, **variables: Any) -> tuple[int, Any]:
    """Request a chat with variables for the template."""
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "chat_template_kwargs": variables,
        "max_tokens": 1,
    }
    return worker.ask("/v1/chat/completions", json.dumps(body).encode())
