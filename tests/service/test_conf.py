"""The reader's older configuration file: what it says, and which line is wrong."""

import numpy as np
import pytest

from paddleseg_ext.errors import ConfigError
from paddleseg_ext.service.conf import Variable, read_conf

FIXED = """\
[conf]
mode = fixed
servers = ['127.0.0.1:9292',
           '127.0.0.1:9293']
serving_conf_file = ./serving_conf/serving_client_conf.prototxt

[feed]
feed_vars = ['img', 'label',]
feed_types = ['float32', 'int64']
feed_shapes = [(1, 28, 28), (1,)]
predict_feed_ids = [0]

# what comes back
[fetch]
fetch_vars = ['prediction']
fetch_types = ['float32']
fetch_shapes = [(10,)]
"""
DISCOVER = FIXED.replace(
    """mode = fixed
servers = ['127.0.0.1:9292',
           '127.0.0.1:9293']
""",
    """mode = discover
host = 127.0.0.1
port = 7001
service_name = MnistDistill
require_num = 2
""",
)


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "x.conf"
        path.write_text(content)
        return read_conf(str(path))

    return read


def test_fixed_teachers_feeds_and_fetches(read):
    conf = read(FIXED)
    assert conf.servers == ("127.0.0.1:9292", "127.0.0.1:9293")
    assert conf.feeds == (
        Variable("img", np.dtype("float32"), (1, 28, 28)),
        Variable("label", np.dtype("int64"), (1,)),
    )
    assert conf.sent == (0,)
    assert conf.fetches == (Variable("prediction", np.dtype("float32"), (10,)),)


def test_discovered_teachers(read):
    conf = read(DISCOVER)
    assert (conf.servers, conf.discovery, conf.service_name, conf.require_num) == (
        (),
        "127.0.0.1:7001",
        "MnistDistill",
        2,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            FIXED.replace("mode = fixed", "mode = fix"),
            "x.conf, line 2: conf.mode: 'fixed' or 'discover' is expected, but got 'fix'",
        ),
        (FIXED.replace("mode = fixed", ""), r"x.conf, line 1: \[conf\] has no 'mode'"),
        (FIXED.replace("'127.0.0.1:9292'", "'nowhere'"), "x.conf, line 3: conf.servers: .*'nowhere'"),
        (FIXED.replace("[0]", "[2]"), "x.conf, line 11: feed.predict_feed_ids: .* from 0 to 1 .*2"),
        (
            FIXED.replace("[0]", "__import__('os').system('true')"),
            "x.conf, line 11: feed.predict_feed_ids: a list or a number",
        ),
        (FIXED.replace("[0]", "[[" * 5000), "x.conf, line 11: feed.predict_feed_ids: a list or a number"),
        (
            FIXED.replace("[(1, 28, 28), (1,)]", "[(1, 28, 28), (1)]"),
            r"x.conf, line 10: feed.feed_shapes: .* got 1; .* \(10,\)",
        ),
        (FIXED.replace("[(1, 28, 28), (1,)]", "[(1, 28, 28)]"), "x.conf, line 10: feed.feed_shapes: a list of 2"),
        (FIXED.replace("'int64'", "'int46'"), "x.conf, line 9: feed.feed_types: .*'int46'"),
        (FIXED.replace("'int64'", "'object'"), "x.conf, line 9: feed.feed_types: .*'object'"),
        (
            FIXED.replace("fetch_vars = ['prediction']", "fetch_vars = prediction"),
            "x.conf, line 15: fetch.fetch_vars: a list or a number",
        ),
        (
            FIXED.replace("fetch_vars =", "fetch_var ="),
            "x.conf, line 15: fetch.fetch_var: unknown; closest: 'fetch_vars'",
        ),
        (FIXED.replace("[fetch]", "[fetches]"), r"x.conf: no section \[fetch\]; closest: 'fetches'"),
        (FIXED.replace("mode = fixed", "mode fixed"), "x.conf, line 2: 'key = value' is expected"),
        (FIXED.replace("[conf]\n", ""), r"x.conf, line 1: a section such as \[conf\]"),
        (FIXED + "fetch_types = []\n", "x.conf, line 18: 'fetch_types' is there twice"),
        (DISCOVER.replace("7001", "70010"), "x.conf, line 3: conf.host: .*'127.0.0.1:70010'"),
        (DISCOVER.replace("7001", "seven"), "x.conf, line 4: conf.port: a list or a number"),
        (
            DISCOVER.replace("require_num = 2", "require_num = 0"),
            "x.conf, line 6: conf.require_num: .* at least 1 .* got 0",
        ),
        (DISCOVER.replace("service_name = MnistDistill", ""), r"x.conf, line 1: \[conf\] has no 'service_name'"),
        ("", r"x.conf: no section \[conf\]"),
    ],
)
def test_a_mistake_is_named_with_its_line(read, content, message):
    with pytest.raises(ConfigError, match=message):
        read(content)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no.conf: No such file"):
        read_conf(str(tmp_path / "no.conf"))
    (tmp_path / "binary.conf").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="binary.conf: no text in UTF-8"):
        read_conf(str(tmp_path / "binary.conf"))
