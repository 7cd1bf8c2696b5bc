"""What others send is read field by field or refused with a reason; never anything else."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddleseg_ext.service.messages import Lease, MalformedText, Report, Share

REPORT = Report("seg", "a", 3, "d", ("127.0.0.1:1", "[::1]:2"), {"127.0.0.1:1": 2.5})


@pytest.mark.parametrize(
    "message", [REPORT, Share(("h:1",), "d"), Lease("seg", "h:1", "toy", "d", "", 3.0, {"x": 1.0})]
)
def test_messages_survive_the_way(message):
    assert type(message).parse(message.text()) == message


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("service", "../etc", "'service' is a name"),
        ("service", None, "'service' is a name"),
        ("student", "a" * 129, "'student' is a name"),
        ("require_num", 0, "'require_num' is a whole number"),
        ("require_num", True, "'require_num' is a whole number"),
        ("require_num", 1e3, "'require_num' is a whole number"),
        ("held", "h:1", "'held' is a list"),
        ("held", ["h:1"] * 1025, "'held' is a list of at most 1024"),
        ("held", ["h:1:2:3"], "'held' is host:port"),
        ("held", [["h:1"]], "'held' is host:port"),
        ("digest", 3, "'digest' is a text"),
        ("digest", "\x1b[2J", "'digest' is a text .* that can be shown"),
        ("rates", {"h:1": "fast"}, "'rates' is a number"),
        ("rates", {"h:1": 10**400}, "'rates' is a number"),
        ("rates", [], "'rates' is an object"),
    ],
)
def test_a_wrong_field_is_named(field, value, reason):
    fields = json.loads(REPORT.text())
    with pytest.raises(MalformedText, match=reason):
        Report.parse(json.dumps({**fields, field: value}))
    del fields[field]
    with pytest.raises(MalformedText, match=f"'{field}'"):
        Report.parse(json.dumps(fields))


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"NaN", b"[" * 100_000, b"9" * 10_000, b"{", b"null", b"[]", b'{"rates": Infinity}']
)
def test_text_that_is_no_message_is_refused(text):
    with pytest.raises(MalformedText):
        Report.parse(text)


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["service", "student", "require_num", "held", "digest", "rates", "x"]), inner
            )
        ),
    )
)
def test_any_json_is_read_or_refused(value):
    for kind in (Report, Share, Lease):
        try:
            found = kind.parse(json.dumps(value))
        except MalformedText:
            continue
        assert kind.parse(found.text()) == found
