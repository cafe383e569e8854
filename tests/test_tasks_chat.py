"""Chat templates give what transformers' own call gives, and end."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest
from families import tokenizer as plain
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.tasks.chat import around, said

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}</{{ message.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(template=TEMPLATE):
    import copy

    made = copy.deepcopy(plain())
    made.chat_template = template
    return made


@given(st.text(max_size=50))
def test_what_is_said_is_put_as_transformers_puts_it(text):
    made = tokenizer()
    turn = [{"role": "user", "content": text}]
    assert said(made, text) == made.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def test_what_stands_around():
    assert around(tokenizer()) == ("<user>", "</user>\n<assistant>")


def test_a_template_that_does_not_end_is_stopped_and_the_thread_is_traced_as_before():
    def mine(frame, event, argument):
        return None

    endless = tokenizer("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    before, began = sys.gettrace(), time.monotonic()
    sys.settrace(mine)
    try:
        with pytest.raises(InterpError, match=r"chat template of .* can't be used: it takes longer than 1 s"):
            said(endless, "hello")
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)
    assert time.monotonic() - began < 10
    assert said(tokenizer(), "hello").startswith("<user>hello")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "can't be used"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages.append(1) }}", "can't be used"),
        ("{{ messages[0].content.__class__.__mro__ }}", "can't be used"),
        ("{{ messages[7].content }}", "has no element 7|can't be used"),
        ("hello", "stands 0 times"),
        ("{{ messages[0].content }} {{ messages[0].content }}", "stands 2 times"),
    ],
)
def test_a_template_that_is_wrong_is_one_message(template, says):
    with pytest.raises(InterpError, match=says) as caught:
        around(tokenizer(template))
    assert "tokenizer.chat_template" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_name_is_called_by_its_type():
    with pytest.raises(InterpError, match="chat template of SimpleNamespace can't be used"):
        said(SimpleNamespace(), "hello")
