"""What a file of a trade-off says of its rows and numbers is checked as it is read."""

from __future__ import annotations

import functools
import json

import pytest
from saved import KINDS, content

import interp
from interp.errors import InterpError


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    kind = KINDS["trade-off"]
    path = kind.save(kind.make(0), tmp_path_factory.mktemp("tradeoff"))
    return json.loads((path / "tradeoff.json").read_text())


def within(record, *place):
    return functools.reduce(lambda held, key: held[key], place, record)


DAMAGED = {
    "no rows": (("rows",), None, "rows is None, a list is needed"),
    "a row that is none": (("rows", 0), 3, r"rows\[0\] is 3, an object is needed"),
    "a row without name": (("rows", 0, "row"), None, "row is None, a text is needed"),
    "a row twice": (("rows", 1, "row"), "dense", "dense"),
    "an unknown kind": (("rows", 1, "kind"), "plans", "kind is 'plans', one of 'dense', 'plan', "),
    "a dense row with a plan": (("rows", 1, "kind"), "dense", "'less' is of the kind 'dense' and has a plan"),
    "a plan without a plan": (("rows", 0, "kind"), "plan", "'dense' is of the kind 'plan' and has no plan"),
    "a control of nothing": (("rows", 1, "of"), "other", "of is 'other', one of 'dense', 'less' is needed"),
    "a control that is no text": (("rows", 1, "control"), 1.5, "control is 1.5, a text is needed"),
    "another budget than the plan's": (("rows", 1, "budget"), 0.25, "budget is 0.25, one of 0.5 is needed"),
    "a budget that is no number": (("rows", 1, "budget"), "half", "budget is 'half', a number is needed"),
    "seconds called simulated": (("rows", 1, "simulated"), True, "simulated is True, one of False is needed"),
    "plans that are a list": (("plans",), [], r"plans is \[\], an object is needed"),
    "a plan of no row": (("plans", "other"), {}, "it has a plan of 'other', which is no row"),
    "a plan's budget": (("plans", "less", "budget"), 7, r"budget must be in \(0, 1\], got 7"),
    "no values": (("values",), [], "it has no values"),
    "a value of no row": (("values", 0, "row"), "other", "row is 'other', one of"),
    "a value of no group": (("values", 0, "group"), "speed", "group is 'speed', one of 'quality', 'cost'"),
    "a quantity that is a number": (("values", 0, "quantity"), 3, "quantity is 3, a text is needed"),
    "a repetition below zero": (("values", 0, "repetition"), -1, "repetition is -1, a whole number from 0"),
    "a billion repetitions": (("values", 0, "repetition"), 10**9, "repetition is 1000000000, a whole number from 0 up"),
    "half a repetition": (("values", 0, "repetition"), 0.5, "repetition is 0.5, a whole number is needed"),
    "a value that is a text": (("values", 0, "value"), "0.1", "value is '0.1', a number or null is needed"),
    "an infinite value": (("values", 0, "value"), float("inf"), "value is inf, a finite number or null"),
    "a cost below zero": (("values", 2, "value"), -1.0, "a cost is -1, a number from 0 is needed"),
    "better than what": (("better", "text.kl"), "more", r"better\['text.kl'\] is 'more', one of 'higher', 'lower'"),
    "a model that is none": (("about", "model"), None, "model is None, a text is needed"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_row_or_number_is_named(record, tmp_path, name):
    (*place, last), value, says = DAMAGED[name]
    damaged = json.loads(json.dumps(record))
    within(damaged, *place)[last] = value
    (tmp_path / "tradeoff.json").write_text(json.dumps(damaged))
    with pytest.raises(InterpError, match=says) as caught:
        interp.results.load(tmp_path)
    assert "tradeoff.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_intact_one_is_read_as_it_was_with_what_was_not_measured_missing(record, tmp_path):
    (tmp_path / "tradeoff.json").write_text(json.dumps(record))
    found = interp.results.load(tmp_path)
    assert content(found) == content(KINDS["trade-off"].make(0))
    missing = found.values[found.values["quantity"] == "prefill_seconds"]
    assert missing["value"].isna().all()
    assert len(missing) == 1
